"""The results as a folder of pages to open from disk or to send: no network, no server, no other file.

`index.html` has the primary metrics of all domains; a page for each domain its tables, single records, its dataset and
the proof of its splits; `methods.html` and `mixtures.html` what compares those; `training.html` the other figures and
tables; `provenance.html` how each thing was made.
"""

import html
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from loratory.data.files import atomic_write, read_json
from loratory.reporting.formats import Layout, html_table, table_part, title_part, whole_page
from loratory.reporting.overview import MARKS, overview_layout

FIGURES, TABLES, VIEWER = "figures", "tables", "viewer"
PAGES = {
    "index": "Summary",
    "methods": "Methods",
    "mixtures": "Mixtures",
    "training": "Training, splits and folding",
    "provenance": "Provenance",
}
KINDS = {  # page: the last part of the names of its tables and figures; all others are of the page `training`
    "methods": ("methods", "costs", "pareto", "rates"),
    "mixtures": ("summary", "mixers", "routing", "transfer", "layers", "tokens"),
}
LONG = 40  # lines of a table
KEY = f"Value [95 % interval], or why there is none; {MARKS}."
SCRIPTS = Path(__file__).parent / VIEWER


def write_site(
    out: Path | str,
    *,
    title: str,
    banner: str,
    metrics: Sequence[Path | str],
    tables: Sequence[Path | str],
    figures: Sequence[Path | str],
    datasets: Mapping[str, Path | str],
    bases: Mapping[str, Path | str],
    views: Sequence[tuple[tuple[str, str], Path | str]],
    study: Mapping[str, Any],
    targets: Mapping[str, str],
) -> None:
    """Writes the folder `out` whole, or nothing.

    Args:
        metrics: JSON files of `evaluation.score`, in the order of the config.
        tables: HTML files that `formats.write_table` wrote; each has a `.tsv` beside it. figures: SVG files.
        datasets: {its name, such as `data/protein`: the folder with `card.json` and `audit.json`}.
        bases: {name: `base.json`}.
        views: ((domain, base), JSON file of `reporting.views`) of domains that show single records.
        study: the config. targets: {what was trained: the file by whose name Snakemake makes it again}.
    """
    reports = [read_json(path) for path in metrics]
    domains = list(dict.fromkeys(report["domain"] for report in reports))
    of = {domain: [path for path in tables if Path(path).name.startswith(f"{domain}.")] for domain in domains}
    others = [path for path in tables if not any(path in own for own in of.values())]
    shown = {
        domain: [(base, read_json(path)) for (owner, base), path in views if owner == domain] for domain in domains
    }
    bodies = {"index": overview_body(reports, banner)}
    for domain in domains:
        own = {name: path for name, path in datasets.items() if name.split("/")[1] == domain}
        parts = [*map(table_section, of[domain]), *(views_section(base, found) for base, found in shown[domain])]
        bodies[domain] = "".join([*parts, *map(dataset_section, own, own.values())])
    for page in (*KINDS, "training"):
        bodies[page] = "".join(
            section(path)
            for section, paths in ((table_section, others), (figure_section, figures))
            for path in paths
            if page_of(path) == page
        )
    bodies["provenance"] = provenance_body(reports, study, targets, datasets, bases)
    names = {page: PAGES.get(page, page) for page, body in bodies.items() if body}
    scripts = {
        domain: list(dict.fromkeys(name for _, found in shown[domain] for view in found for name in view["scripts"]))
        for domain in domains
    }
    copied = {
        FIGURES: figures,
        TABLES: [Path(path).with_suffix(".tsv") for path in tables],
        VIEWER: sorted(SCRIPTS.iterdir()) if any(scripts.values()) else [],  # with its licence
    }
    with atomic_write(out) as aside:
        aside.mkdir()
        for folder, paths in copied.items():
            (aside / folder).mkdir()
            for path in paths:
                shutil.copyfile(path, aside / folder / Path(path).name)
        for page, name in names.items():
            heading = f"<h1>{html.escape(title)}: {html.escape(name)}</h1>\n"
            loaded = "".join(f'<script src="{VIEWER}/{script}"></script>\n' for script in scripts.get(page, ()))
            body = navigation(names, page) + heading + bodies[page] + loaded
            (aside / f"{page}.html").write_text(whole_page(html.escape(f"{title}: {name}"), body))


def page_of(path: Path | str) -> str:
    """The page of a table or figure that is of no domain."""
    kind = Path(path).stem.rpartition(".")[2]
    return next((page for page, kinds in KINDS.items() if kind in kinds), "training")


def navigation(names: Mapping[str, str], here: str) -> str:
    mark = {here: ' aria-current="page"'}
    links = (f'<a href="{page}.html"{mark.get(page, "")}>{html.escape(name)}</a>' for page, name in names.items())
    return f"<nav>{' '.join(links)}</nav>\n"


def overview_body(reports: Sequence[Mapping], banner: str) -> str:
    """Primary metrics: a table for each base."""
    bases = dict.fromkeys(report["base"] for report in reports)
    layouts = [overview_layout([report for report in reports if report["base"] == base], base) for base in bases]
    parts = [f"<h2>{html.escape(layout.title)}</h2>\n{html_table(layout)}" for layout in layouts]
    warning = f'<p class="banner">{html.escape(banner)}</p>\n' if banner else ""
    return "".join([warning, *parts, f"<p>{html.escape(MARKS)}. Intervals: the domains' pages.</p>\n"])


def table_section(path: Path | str) -> str:
    """A written table, its foot behind a click; a long table too."""
    name, page = Path(path).stem, Path(path).read_text()
    table, mark, foot = table_part(page).partition('<ul class="foot">')
    key = f"<p>{html.escape(KEY)}</p>\n" if MARKS[0] in foot else ""
    if table.count("<tr>") > LONG:
        table = f"<details><summary>The table</summary>\n{table}</details>\n"
    notes = f"<details><summary>How to read it</summary>{mark}{foot}</details>\n"
    digits = f'<p><a href="{TABLES}/{name}.tsv">all digits ({name}.tsv)</a></p>\n'
    return f"<h2>{title_part(page)}</h2>\n{key}{table}{notes}{digits}"


def figure_section(path: Path | str) -> str:
    name, (of, _, kind) = Path(path).name, Path(path).stem.rpartition(".")
    title = f"{kind.capitalize()} of {of}"
    return f'<h2>{html.escape(title)}</h2>\n<img src="{FIGURES}/{name}" alt="{html.escape(title)}">\n'


def views_section(base: str, views: Sequence[Mapping]) -> str:
    """What a domain shows of single records, each part behind a click."""
    parts = [
        f"<details open><summary>{html.escape(view['title'])}</summary>\n{view['html']}</details>\n" for view in views
    ]
    return f"<h2>Records, on {html.escape(base)}</h2>\n{''.join(parts)}" if parts else ""


def dataset_section(name: str, folder: Path | str) -> str:
    """What a dataset holds and where it is from, what was left out, and the counts that prove its splits."""
    card, audit = (read_json(Path(folder) / f"{part}.json") for part in ("card", "audit"))
    splits = [[split, str(count), str(card["groups"][split])] for split, count in card["records"].items()]
    left = [[reason, str(count)] for reason, count in card["n_rejected"].items()]
    proof = [[count.replace("_", " "), str(value)] for count, value in audit["counts"].items()]
    shared = [
        [corpus, kind, str(found["records"]), "–" if found["sensitivity"] is None else f"{found['sensitivity']:.0%}"]
        for corpus, kinds in audit["shared"].items()
        for kind, found in kinds.items()
    ]
    licence = card["source"].get("licence") or "not given"
    total = f"{card['n_in']} records in, {card['n_kept']} kept. Licence: {licence}."
    return "".join(
        [
            f"<h2>Dataset {html.escape(name)}</h2>\n<p>{html.escape(total)}</p>\n",
            plain_table("Splits", ["split", "records", "groups"], splits),
            plain_table("Left out", ["reason", "records"], left),
            plain_table("Proof: counted again in the written files", ["count", "value"], proof),
            plain_table(f"What its {audit['test']} test records share", ["with", "what", "records", "found"], shared),
            yaml_block("Source and options", {part: card[part] for part in ("source", "options")}),
        ]
    )


def plain_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table under a heading of its own; nothing without rows."""
    return f"<h3>{html.escape(title)}</h3>\n{html_table(Layout(title, '', header, rows, [], []))}" if rows else ""


def provenance_body(
    reports: Sequence[Mapping],
    study: Mapping[str, Any],
    targets: Mapping[str, str],
    datasets: Mapping[str, Path | str],
    bases: Mapping[str, Path | str],
) -> str:
    commands = [[name, f"snakemake {target}"] for name, target in targets.items()]
    digests = [
        [f"{name}/{split}.parquet", digest]
        for name, folder in datasets.items()
        for split, digest in read_json(Path(folder) / "audit.json")["sha256"].items()
    ]
    about = {name: read_json(path) for name, path in bases.items()}
    versions = dict.fromkeys(pair for report in reports for pair in report["versions"].items())
    return "".join(
        [
            plain_table("What makes each row again, with the same --configfile", ["system", "command"], commands),
            plain_table("What computed the metrics", ["package", "version"], [[*pair] for pair in versions]),
            plain_table("Datasets", ["file", "sha256"], digests),
            yaml_block("Bases", about),
            yaml_block("Config", study),
        ]
    )


def yaml_block(title: str, values: Mapping[str, Any]) -> str:
    """Values as in a config, behind a click."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
    return f"<details><summary>{html.escape(title)}</summary>\n<pre>{html.escape(text)}</pre></details>\n"
