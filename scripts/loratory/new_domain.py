"""A domain to begin with: the example of docs/extend.md as a package of its own, under another name."""

import re
from pathlib import Path

from loratory.config import PROJECT
from loratory.data.files import atomic_write
from loratory.errors import InputError
from loratory.registry import NAME, registered_names

PAGE = PROJECT / "docs" / "extend.md"
BLOCKS = re.compile(
    r"```(?:python|toml)\n# (domains/promoter/\S+|tests/test_promoter\.py|pyproject\.toml)\n(.*?)```", re.S
)


def write_domain(name: str) -> Path:
    """Writes the folder `loratory-{name}`: a package with an entry point, and its test. Returns the folder.

    It is not called as the package in it: where the command is given, Python would take the folder for that package.

    Raises:
        InputError: `name` is no name or is registered, or the folder exists.
    """
    package, folder = f"loratory_{name}", Path(f"loratory-{name.replace('_', '-')}")
    if not NAME.fullmatch(name) or name in registered_names("domain"):
        taken = "the domain exists" if name in registered_names("domain") else "no name for a domain"
        raise InputError("command line", taken, name, "another of small letters, digits and _")
    if folder.exists():
        raise InputError(folder, "the folder exists", fix="take another name, or remove it")
    replaced = {"loratory.domains.promoter": package, "loratory_promoter": package}
    replaced |= {"loratory-promoter": folder.name, '"promoter"': f'"{name}"'}
    replaced |= {"[Promoter]": f"[{name.capitalize()}]", "\npromoter = ": f"\n{name} = "}
    with atomic_write(folder) as aside:
        for file, text in BLOCKS.findall(PAGE.read_text(encoding="utf-8")):
            path = aside / file.replace("domains/promoter", package).replace("promoter", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            for old, new in replaced.items():
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")
    return folder
