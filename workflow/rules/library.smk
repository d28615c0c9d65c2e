"""Makes the library of this project importable where it is not installed, before anything imports it."""

import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from snakemake.sourcecache import HostingProviderFile


def project_folder():
    """This project's folder: around this file, or unpacked into Snakemake's cache where a git host has this file."""
    here = workflow.current_basedir
    if not isinstance(here, HostingProviderFile):
        return Path(here.get_path_or_uri(secret_free=True)).parent.parent
    folder = Path(workflow.sourcecache.get_path(here.join("library.smk"))).parents[2]
    if not (folder / "scripts" / "loratory").exists():  # it goes where Snakemake puts the scripts, which import it
        with TemporaryDirectory(dir=folder) as aside:
            with open(f"{aside}/files.tar", "w+b") as packed:
                here.hosted_repo.repo.archive(packed, here.ref)
                packed.seek(0)
                tarfile.open(fileobj=packed).extractall(aside, filter="data")
            for part in ("resources", "scripts"):
                if not (folder / part).exists():
                    Path(aside, part).rename(folder / part)
    return folder


sys.path.insert(0, f"{project_folder()}/scripts")
