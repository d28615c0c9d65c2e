"""FASTA → records of the twenty standard residues, grouped by homology."""

import re
from collections.abc import Iterable, Iterator
from functools import partial

from loratory.data import mmseqs, splits
from loratory.data.alphabets import RESIDUES, invalid_letters, looks_like_nucleotides
from loratory.data.fasta import read_fasta
from loratory.data.ledger import Ledger
from loratory.domains.contract import random_split
from loratory.domains.protein.sources import Dataset, Files
from loratory.errors import InputError

COLUMNS = {"sequence": "string", "length": "int32", "tax_id": "string", "name": "string"}
split = partial(random_split, "protein")

# https://www.uniprot.org/help/fasta-headers; a cluster's name may be empty and may hold `n=` and `Tax=` itself.
UNIREF = re.compile(r"\S+(?:\s+(?P<name>.*))?\s+n=\d+\s+Tax=.*?(?:\s+TaxID=(?P<tax_id>\d+))?\s+RepID=\S+")
UNIREF_REDUCED = re.compile(r"\S+(?:\s+(?P<name>.*?))?\s+TaxID=(?:(?P<tax_id>\d+)(?:\.0)?|\S*)\s+RepID=\S+")
UNIPROT = re.compile(r"(?:sp|tr)\|\S+\s+(?P<name>.*?)\s+OS=.*?(?:\s+OX=(?P<tax_id>\d+).*)?")
BARE = re.compile(r"\S+(?:\s+(?P<name>.*))?(?P<tax_id>)")

RARE, AMBIGUOUS = b"UO", b"BZJX"
MAPPED = bytes.maketrans(RARE, b"CK")  # selenocysteine and pyrrolysine by their nearest standard residues


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Records whose sequences are distinct and within the policy.

    Raises:
        InputError: as `read_fasta`; with `on_error: fail` also for letters that are no residues, and for nucleotides.
    """
    found = []
    for where, id, header, raw in read_fasta(files.fasta, ledger, files.encoding):
        sequence = accepted_sequence(where, id, raw, dataset, ledger)
        if sequence is not None:
            name, tax_id = name_and_taxon(header)
            record = {"id": id, "sequence": sequence, "length": len(sequence), "tax_id": tax_id, "name": name}
            found.append((where, record))
    yield from distinct_records(found, ledger)


def distinct_records(found: Iterable[tuple[str, dict]], ledger: Ledger) -> list[dict]:
    """The records of `(where, record)`, each sequence once: the one with the smallest id."""
    first: dict[str, tuple[str, dict]] = {}
    for new in found:
        sequence = new[1]["sequence"]
        kept, copy = sorted((first.get(sequence, new), new), key=lambda item: (item[1]["id"], item[0]))
        if sequence in first:
            ledger.drop_record(
                *file_and_record(copy[0]), copy[1]["id"], "duplicate_sequence", f"same as {kept[1]['id']}"
            )
        first[sequence] = kept
    return [record for _, record in first.values()]


def accepted_sequence(where: str, id: str, raw: bytes, dataset: Dataset, ledger: Ledger) -> str | None:
    """The sequence in capitals of the twenty residues; None if it went to the ledger."""
    sequence = raw.upper().removesuffix(b"*")
    error = sequence_error(where, sequence)
    if error:
        ledger.note_error(error, id)
        return None
    ambiguous, rare = letter_count(AMBIGUOUS, sequence), letter_count(RARE, sequence)
    if ambiguous:
        ledger.drop_record(*file_and_record(where), id, "ambiguous_residue", f"{ambiguous} of {len(sequence)}")
    elif rare and dataset.rare_residues == "drop":
        ledger.drop_record(*file_and_record(where), id, "rare_residue", f"{rare} of {len(sequence)}")
    elif len(sequence) < dataset.min_length:
        ledger.drop_record(*file_and_record(where), id, "too_short", f"{len(sequence)} < {dataset.min_length}")
    elif len(sequence) > dataset.max_length:
        ledger.drop_record(*file_and_record(where), id, "too_long", f"{len(sequence)} > {dataset.max_length}")
    else:
        return sequence.translate(MAPPED).decode()
    return None


def sequence_error(where: str, sequence: bytes) -> InputError | None:
    """Why it is no protein sequence at all; None if it is one."""
    invalid = invalid_letters(sequence, RESIDUES + (RARE + AMBIGUOUS).decode())
    if invalid:
        letter = invalid[:1]
        what = f"{letter.decode('latin-1')!r} at position {sequence.index(letter) + 1} of the sequence is no residue"
        if letter in b"-.":
            return InputError(where, what, None, "unaligned sequences", "remove the gaps of the alignment", "gap")
        fix = "remove it; only one `*` at the very end is understood"
        return InputError(where, what, None, "one-letter residue codes", fix, "residue")
    if looks_like_nucleotides(sequence):
        what, value = "looks like nucleotides", sequence[:30].decode()
        fix = "translate it; if it is a protein all the same, set `on_error: skip`"
        return InputError(where, what, value, "residues of a protein", fix, "nucleotides")
    return None


def letter_count(letters: bytes, sequence: bytes) -> int:
    return sum(map(sequence.count, letters))


def file_and_record(where: str) -> tuple[str, str]:
    file, _, record = where.rpartition(":")
    return file, record


def name_and_taxon(header: str) -> tuple[str, str]:
    """Name and taxon identifier; "" where the header has none."""
    patterns = (UNIREF, UNIREF_REDUCED, UNIPROT, BARE)
    found = next(match for pattern in patterns if (match := pattern.fullmatch(header)))
    return found["name"] or "", found["tax_id"] or ""


def protein_sequences(records: list[dict]) -> dict[str, str]:
    return {record["id"]: record["sequence"] for record in records}


def related_when(dataset: Dataset) -> mmseqs.Relation:
    """What may not stand in two splits."""
    return mmseqs.Relation(dataset.identity, dataset.coverage, dataset.covered)


def group(records: list[dict], dataset: Dataset) -> list[str]:
    """The representative of each record's cluster."""
    home = mmseqs.cluster_sequences(protein_sequences(records), related_when(dataset))
    return [home[record["id"]] for record in records]


def find_leaks(held_out: list[dict], others: list[dict], dataset: Dataset) -> dict[str, str]:
    """Others that a search with the held-out sequences finds: clustering compares with representatives only."""
    hits = mmseqs.search_sequences(protein_sequences(held_out), protein_sequences(others), related_when(dataset))
    return {target: query for query, target, _ in reversed(hits)}


def count_overlaps(held_out: list[dict], others: list[dict], dataset: Dataset) -> dict[str, dict]:
    """Records held out that are related to others, by the usual criteria of the field from strict to lax."""
    identity, coverage = dataset.identity, dataset.coverage
    relations = {
        f"{identity:.0%} identity over {coverage:.0%} of both": mmseqs.Relation(identity, coverage),
        f"{identity:.0%} identity over {coverage:.0%} of one": mmseqs.Relation(identity, coverage, "shorter"),
        "95% identity over 50 residues": mmseqs.Relation(0.95, columns=50),
    }
    return mmseqs.count_related(protein_sequences(held_out), protein_sequences(others), relations)


def proof(parts: dict[str, list[dict]], dataset: Dataset) -> dict[str, int]:
    return {
        "clusters_in_two_splits": splits.count_shared(parts, "group"),
        "sequences_in_two_splits": splits.count_shared(parts, "sequence"),
    }


def summary(records: list[dict]) -> dict:
    lengths = sorted(record["length"] for record in records)
    return {
        "residues": sum(lengths),
        "length": {"min": lengths[0], "median": lengths[len(lengths) // 2], "max": lengths[-1]},
        "taxa": len({record["tax_id"] for record in records} - {""}),
    }
