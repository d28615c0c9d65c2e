"""Where raw files come from: the user's own, a checksummed download, or the shipped simulator."""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import urlopen

from loratory import registry
from loratory.data.files import BLOCK, atomic_write, file_sha256, read_json, write_json
from loratory.domains.contract import FilesOptions, SimulationOptions
from loratory.errors import InputError

MANIFEST = "files.json"


def fetch_source(
    domain: str, source: FilesOptions | SimulationOptions, population: str, seed: int, out: Path | str
) -> None:
    """Makes the folder `out` with `files.json` (the `Files` options to read) and whatever had to be made or fetched.

    A user's own files stay where they are; their digests are noted.

    Args:
        population: "domain" or "general": which of the two the simulator writes.

    Raises:
        InputError: a file is missing or out of reach, or a download differs from its digest.
    """
    with atomic_write(out) as aside:
        aside.mkdir(parents=True)
        if source.kind == "simulate":
            found = simulate_files(domain, source, population, seed, aside)
        else:
            found = source.expand_patterns().map_locations(
                lambda location: fetch_location(location, source.sha256, aside)
            )
            if added := source.added_simulation:
                found = join_locations(found, simulate_files(domain, added, population, seed, aside))

        def final_path(path: str) -> str:
            return str(Path(out, Path(path).relative_to(aside))) if Path(path).is_relative_to(aside) else path

        read = sorted({*found.file_paths(), *found.listed_files()})
        digests = {final_path(path): file_sha256(path) for path in read if Path(path).is_file()}
        placed = found.map_locations(final_path)
        simulated = source.kind == "simulate" or source.added_simulation is not None
        manifest = {"files": placed.model_dump(mode="json"), "sha256": digests, "simulated": simulated}
        write_json(aside / MANIFEST, manifest)


def listed_state(source: FilesOptions | SimulationOptions) -> str:
    """A digest of names, sizes and dates of the files that a source's tables list: it differs once one was replaced.

    They may be many thousands, so that they are no inputs of a rule, and their bytes are not read here.
    """
    digest = hashlib.sha256()
    for path in source.listed_files() if isinstance(source, FilesOptions) else []:
        found = os.stat(path)
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def simulate_files(
    domain: str, simulation: SimulationOptions, population: str, seed: int, aside: Path
) -> FilesOptions:
    """The `Files` that the simulator writes into `aside`."""
    sources = registry.load_module("domain", domain, "sources")
    files = registry.load_module("domain", domain, "simulate").simulate(simulation, population, seed, aside)
    return sources.Files(**files).map_locations(lambda path: str(aside / path))


def join_locations(files: FilesOptions, more: FilesOptions) -> FilesOptions:
    """`files` with the locations of `more` added to each of its lists of locations."""
    return files.model_copy(update={name: [*getattr(files, name), *getattr(more, name)] for name in files.LOCATIONS})


def open_source(domain: str, folder: Path | str) -> FilesOptions:
    """The `Files` options that `fetch_source` noted.

    Raises:
        InputError: a file that was there then is gone, such as one of many in a shared folder.
    """
    manifest = read_json(Path(folder) / MANIFEST)
    for path in manifest["sha256"]:
        if not Path(path).exists():
            what, fix = "it is gone since it was fetched", f"remove {folder}, then the same command makes it again"
            raise InputError(path, what, expected="all that was there", fix=fix, reason="lost")
    return registry.load_module("domain", domain, "sources").Files(**manifest["files"])


def fetch_location(location: str, digests: dict[str, str], aside: Path) -> str:
    """A location as a local path: unchanged, or downloaded into `aside`."""
    if "://" not in location:
        return location
    address = urlparse(location)
    if address.scheme != "https":
        raise InputError(location, "unsupported address", address.scheme, "https, or a local path")
    if location not in digests:
        raise InputError(location, "a download without a digest", expected="its hex digest under `sha256:`")
    name = PurePosixPath(address.path).name
    if name == MANIFEST or (aside / name).exists():  # of another address
        name = f"{digests[location][:8]}_{name}"
    digest = hashlib.sha256()
    try:
        with urlopen(location) as stream, open(aside / name, "wb") as target:
            while block := stream.read(BLOCK):
                digest.update(block)
                target.write(block)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        fix = "try again; or fetch it by hand and give its path"
        raise InputError(location, "it could not be fetched", error, fix=fix, reason="network") from error
    if digest.hexdigest() != digests[location]:
        what = "the download differs from its digest"
        fix = "check the release, then the digest"
        raise InputError(location, what, digest.hexdigest(), digests[location], fix, "checksum")
    return str(aside / name)
