"""Downloading one commit of a repository of the Hugging Face hub, or of a server that speaks its layout.

A broken connection is taken up where it broke (as long as the process lives), and files that came whole are not
fetched again. What arrived is held against the hub's list, as the library may hand back a part of it when it finds no
network, and against its checksums, as the library compares sizes alone.
"""

import hashlib
from pathlib import Path, PurePosixPath

from loratory.data.files import BLOCK, file_sha256
from loratory.errors import InputError

SKIPPED = ["*/*", "consolidated*"]
OTHERWISE = "try again; without a network, put the folder where `bases_root` says"


def download_files(repository: str, revision: str, patterns: list[str]) -> Path:
    """The folder, in the library's cache, of a repository's files at this commit that match, subfolders left out.

    Raises:
        InputError: the repository, the commit or a file is unknown, gated or out of reach, or a file came damaged.
    """
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{repository}@{revision[:8]}"
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=SKIPPED,
        )
    except errors.GatedRepoError:
        fix = f"accept its licence at {constants.ENDPOINT}/{repository} and set HF_TOKEN to a token of your account"
        raise InputError(where, "the repository is gated", fix=fix, reason="gated") from None
    except errors.RepositoryNotFoundError:
        fix = "check `hub`; for a private one set HF_TOKEN"
        raise InputError(where, f"no such repository at {constants.ENDPOINT}", fix=fix, reason="missing") from None
    except errors.RevisionNotFoundError:
        raise InputError(where, "no such commit", revision, "a commit of it", "check `revision`", "missing") from None
    except errors.RemoteEntryNotFoundError as error:
        name = PurePosixPath(error.response.url.path).name
        what, fix = "a file that the hub lists is missing there", "try again later"
        raise InputError(f"{where}:{name}", what, fix=fix, reason="missing") from None
    except (OSError, ValueError, AttributeError, RuntimeError, errors.EntryNotFoundError, errors.HTTPError) as error:
        # Attribute and runtime errors are of threads whose client another one closed when it failed (hub 2.4).
        missing = missing_files(repository, revision, patterns) or []
        others = max(0, len(missing) - 1)
        what = f"it {f'and {others} more ' * bool(others)}could not be fetched from {constants.ENDPOINT}"
        where += f":{missing[0]}" if missing else ""
        raise InputError(where, what, error.__cause__ or error, fix=OTHERWISE, reason="network") from error
    if missing_files(repository, revision, patterns) is None:
        what = f"the cache has files of it but no list of all, and {constants.ENDPOINT} gave none"
        raise InputError(where, what, fix=OTHERWISE, reason="network")
    check_checksums(Path(folder), where)
    return Path(folder)


def missing_files(repository: str, revision: str, patterns: list[str]) -> list[str] | None:
    """What the cache lacks of a commit's files that match; None if it has no list of them."""
    from huggingface_hub import errors, get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects

    try:
        listed = [file.path for file in get_cached_repo_tree(repository, revision=revision)]
    except errors.CachedRepoTreeNotFoundError:
        return None
    wanted = filter_repo_objects(sorted(listed), allow_patterns=patterns, ignore_patterns=SKIPPED)
    found = {name: try_to_load_from_cache(repository, name, revision=revision) for name in wanted}
    return [name for name, path in found.items() if not isinstance(path, str)]


def check_checksums(folder: Path, where: str) -> None:
    """Holds files of the cache against their checksums: each is a link to a blob that is named by its own.

    Raises:
        InputError: one differs; it is taken out of the cache, so that the next attempt fetches it anew.
    """
    for path in sorted(path for path in folder.iterdir() if path.is_symlink()):
        blob = folder / path.readlink()
        digest = {64: file_sha256, 40: git_sha1}.get(len(blob.name))
        if digest and digest(blob) != blob.name:
            blob.unlink()
            path.unlink()
            what, fix = "it came with a wrong checksum and was thrown away", "try again"
            raise InputError(f"{where}:{path.name}", what, None, f"{blob.name[:12]}… as the hub says", fix, "checksum")


def git_sha1(path: Path) -> str:
    """Git's name for a file's content, which the hub gives for small files."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
