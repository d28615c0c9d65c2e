"""The site's pages that stand outside docs/, and links to them as they are written for the repository."""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

OUTSIDE = {"config/README.md": "config.md", "benchmarks/RESULTS.md": "measured.md"}  # {file: page}
PLACES = {page: file for file, page in OUTSIDE.items()}
LINK = re.compile(r"\[(?P<text>[^]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    config.mdx_configs["toc"]["slugify"] = anchor
    return config


def anchor(heading: str, separator: str) -> str:
    """A heading's anchor, as forges make it: links are written for these."""
    kept = re.sub(r"[^\w\- ]", "", html.unescape(heading).strip().lower())
    return kept.replace(" ", separator)


def on_files(files: Any, config: Any) -> Any:
    root = Path(config.config_file_path).parent
    for file, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(root / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links lead to pages; of files that are none, their text stays."""
    place = PLACES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def page_link(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link["path"]))
        found = OUTSIDE.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(found) is None:
            return link["text"]
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"[{link['text']}]({posixpath.relpath(found, start)}{link['anchor'] or ''})"

    return LINK.sub(page_link, markdown)
