"""FASTA and tables → records of the twenty standard residues, grouped by homology."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from loratory.data import mmseqs, splits
from loratory.data.alphabets import RESIDUES, invalid_letters, looks_like_nucleotides
from loratory.data.fasta import read_fasta
from loratory.data.files import require_distinct_files
from loratory.data.ledger import Ledger
from loratory.data.records import Records, TextById
from loratory.data.sampling import file_and_record
from loratory.data.tables import read_sequence_rows
from loratory.domains.contract import random_split
from loratory.domains.protein.labels import (
    TABLES,
    LabelTables,
    count_labels,
    label_columns,
    label_values,
    parse_labels,
    require_labels,
)
from loratory.domains.protein.sources import Dataset, Files, ResidueOptions
from loratory.errors import InputError

DISTINCT = "sequence"
COLUMNS: dict[str, str | pa.DataType] = {
    **{"sequence": "string", "length": "int32", "tax_id": "string", "name": "string", "unit": "string"},
    "labels": pa.list_(pa.string()),  # see `labels`
}
split = partial(random_split, "protein")

# https://www.uniprot.org/help/fasta-headers; a cluster's name may be empty and may hold `n=` and `Tax=` itself.
# The first is what nearly all of UniRef has, without what the second looks for in vain: four times as fast.
UNIREF_PLAIN = re.compile(r"\S+\s+(?P<name>[^=]*)\sn=\d+\sTax=[^=]*\sTaxID=(?P<tax_id>\d+)\sRepID=\S+")
UNIREF = re.compile(r"\S+(?:\s+(?P<name>.*))?\s+n=\d+\s+Tax=.*?(?:\s+TaxID=(?P<tax_id>\d+))?\s+RepID=\S+")
UNIREF_REDUCED = re.compile(r"\S+(?:\s+(?P<name>.*?))?\s+TaxID=(?:(?P<tax_id>\d+)(?:\.0)?|\S*)\s+RepID=\S+")
UNIPROT = re.compile(r"(?:sp|tr)\|\S+\s+(?P<name>.*?)\s+OS=.*?(?:\s+OX=(?P<tax_id>\d+).*)?")
BARE = re.compile(r"\S+(?:\s+(?P<name>.*))?(?P<tax_id>)")
HEADERS = (UNIREF, UNIREF_REDUCED, UNIPROT, BARE)

STANDARD, RARE, AMBIGUOUS = RESIDUES.encode(), b"UO", b"BZJX"
# Selenocysteine and pyrrolysine by their nearest standard residues; whatever stands for several residues as X.
MAPPED = bytes.maketrans(RARE + AMBIGUOUS, b"CKXXXX")
CHANCE_BITS = 40  # score below which an alignment may be chance: E = 0.0001 for 100 residues against a million
NUCLEOTIDE_RECORDS, NUCLEOTIDE_SHARE = 5, 0.1  # of a file from which it holds nucleotides


class RawProtein(NamedTuple):
    """A sequence as a file gives it, the `unit` that may not be parted from others of that name ("": none), and what
    it is labelled."""

    where: str
    id: str
    sequence: bytes
    name: str = ""
    tax_id: str = ""
    unit: str = ""
    labels: tuple[str, ...] = ()


class Residues(NamedTuple):
    """Letters, and those among them that are not of the twenty residues."""

    letters: bytes
    odd: bytes


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields records within the policy as they are read.

    Raises:
        InputError: as `read_fasta` and `read_table`; a file of nucleotides; with `on_error: fail` also for letters
            that are no residues.
    """
    files = files.expand_patterns()
    named = {"fasta": files.fasta, "tables": files.tables, "labels": files.labels}
    require_distinct_files([(kind, path) for kind, paths in named.items() for path in paths])
    check_label_files(files, dataset)
    tables = LabelTables(files, dataset) if files.labels else None
    found: Counter[str] = Counter()
    for proteins in raw_proteins(files, dataset, ledger):
        labelled = labelled_proteins(proteins, tables, found) if dataset.labels else proteins
        yield from accepted_records(labelled, dataset, ledger)
    if tables is not None:
        ledger.joined[TABLES] = tables.close_account()
    require_labels(found, dataset)


def check_label_files(files: Files, dataset: Dataset) -> None:
    """Raises:
    InputError: columns of labels without a table that could hold them, or label tables without such columns.
    """
    if files.labels and not dataset.labels:
        what, fix = "no column of the label tables is named", "name them in `dataset.labels`"
        raise InputError(files.labels[0], what, expected="a property and its column", fix=fix)
    if dataset.labels and not files.labels and not files.tables:
        where, what = "dataset.labels", "no table is given that labels could stand in"
        raise InputError(where, what, ", ".join(dataset.labels), "`labels` or `tables` of `source`")


def raw_proteins(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[Iterator[RawProtein]]:
    """The proteins of each file."""
    for path in files.fasta:
        yield fasta_proteins(path, files, ledger)
    for path in files.tables:
        yield table_proteins(path, files, dataset, ledger)


def fasta_proteins(path: str, files: Files, ledger: Ledger) -> Iterator[RawProtein]:
    for where, id, header, sequence in read_fasta(path, ledger, files.encoding, remember_ids=False):
        yield RawProtein(where, id, sequence, *name_and_taxon(header))


def table_proteins(path: str, files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[RawProtein]:
    """The rows of a table; their labels stand in them, unless there are label tables."""
    columns = files.columns.named_columns()
    own = {} if files.labels else dataset.labels
    for where, id, row in read_sequence_rows(
        path, columns | (label_columns(dataset) if own else {}), ledger, files.encoding
    ):
        try:
            labels = parse_labels(where, row, own)
        except InputError as error:
            ledger.note_error(error, id)
            continue
        yield RawProtein(where, id, row["sequence"].encode(), unit=row.get("group", ""), labels=tuple(labels))


def labelled_proteins(
    proteins: Iterable[RawProtein], tables: LabelTables | None, found: Counter[str]
) -> Iterator[RawProtein]:
    """The proteins with the labels that the tables have of them; `found` counts those of each property."""
    for raw in proteins:
        labels = raw.labels if tables is None else tuple(tables.find_labels(raw.id))
        if labels:
            found.update(label.partition("=")[0] for label in labels)
            raw = raw._replace(labels=labels)
        yield raw


def accepted_records(proteins: Iterable[RawProtein], dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """The records of one file.

    Raises:
        InputError: many of its records look like nucleotides.
    """
    n, like, first = 0, 0, None
    shortest, longest, labelled = dataset.min_length, dataset.max_length, bool(dataset.labels)
    for raw in proteins:
        n += 1
        sequence = raw.sequence
        if looks_like_nucleotides(sequence):
            like, first = like + 1, first or raw
        if shortest <= len(sequence) <= longest and not labelled and not sequence.translate(None, STANDARD):
            yield protein_record(raw, raw.id, sequence.decode())  # nearly all
        else:
            yield from records_in_policy(raw, dataset, ledger)
    if first and like >= NUCLEOTIDE_RECORDS and like >= NUCLEOTIDE_SHARE * n:
        what = f"{like} of {n} records of the file look like nucleotides, the first of them"
        value, fix = first.sequence[:30].upper().decode(), "translate them"
        raise InputError(first.where, what, value, "residues of proteins", fix, "nucleotides")


def records_in_policy(raw: RawProtein, dataset: Dataset, ledger: Ledger) -> list[dict]:
    """The record of a protein, or those of its windows; none if it went to the ledger."""
    sequence = residue_letters(raw.where, raw.id, raw.sequence, ledger)
    if sequence is None:
        return []
    records, pieces = [], cut_sequence(raw.id, sequence, dataset)
    for number, (id, piece) in enumerate(pieces):
        if number:
            ledger.count_record()
        if letters := letters_within_policy(raw.where, id, piece, dataset, ledger, dataset.max_ambiguous):
            is_piece = len(piece.letters) < len(sequence.letters)
            labels = [] if is_piece else list(raw.labels)  # the whole's may not hold of a piece
            if dataset.labels and lacks_label(labels, dataset):
                ledger.count_dropped("unlabelled")
                continue
            if is_piece:
                ledger.count_change("cropped" if dataset.too_long == "crop" else "windows")
                if raw.labels:
                    ledger.count_change("unlabelled_pieces")
            records.append(protein_record(raw, id, letters, raw.id if len(pieces) > 1 else "", labels))
    return records


def protein_record(raw: RawProtein, id: str, letters: str, unit: str = "", labels: Sequence[str] = ()) -> dict:
    """Args:
    letters, labels: those of the protein or of a piece of it, named `id`. unit: of pieces, where the file has none.
    """
    return {
        "id": id,
        "sequence": letters,
        "length": len(letters),
        "tax_id": raw.tax_id,
        "name": raw.name,
        "unit": raw.unit or unit,
        "labels": [*labels],
        "where": raw.where,
    }


def lacks_label(labels: list[str], dataset: Dataset) -> bool:
    """Whether a label that is required is missing."""
    return any(label.required and not label_values(labels, name) for name, label in dataset.labels.items())


def cut_sequence(id: str, sequence: Residues, dataset: Dataset) -> list[tuple[str, Residues]]:
    """`(id, sequence)` of what stands for a protein: itself, its beginning, or windows named after their residues."""
    longest, letters = dataset.max_length, sequence.letters
    if len(letters) <= longest or dataset.too_long == "drop":
        return [(id, sequence)]
    if dataset.too_long == "crop":
        return [(id, find_odd(letters[:longest]))]
    starts = range(0, len(letters), longest)
    windows = [(at, letters[at : at + longest]) for at in starts]
    return [(f"{id}/{at + 1}-{at + len(window)}", find_odd(window)) for at, window in windows]


def accepted_sequence(where: str, id: str, raw: bytes, dataset: ResidueOptions, ledger: Ledger) -> str | None:
    """The sequence in capitals of the twenty residues; None if it went to the ledger."""
    sequence = residue_letters(where, id, raw, ledger)
    return None if sequence is None else letters_within_policy(where, id, sequence, dataset, ledger)


def find_odd(letters: bytes) -> Residues:
    return Residues(letters, letters.translate(None, STANDARD))


def residue_letters(where: str, id: str, raw: bytes, ledger: Ledger) -> Residues | None:
    """The sequence in capitals, without the mark of its end; None if it is malformed."""
    sequence = find_odd(raw)
    if not sequence.odd:
        return sequence
    sequence = find_odd(raw.upper().removesuffix(b"*"))
    error = letter_error(where, sequence.letters)
    if error is None:
        return sequence
    ledger.note_error(error, id)
    return None


def letters_within_policy(
    where: str, id: str, sequence: Residues, dataset: ResidueOptions, ledger: Ledger, max_ambiguous: float = 0
) -> str | None:
    """The sequence in letters of the twenty residues and, where it is tolerated, X; None if it went to the ledger."""
    letters, odd = sequence
    length = len(letters)
    ambiguous, rare = (letter_count(AMBIGUOUS, odd), letter_count(RARE, odd)) if odd else (0, 0)
    if ambiguous > max_ambiguous * length:
        ledger.drop_record(*file_and_record(where), id, "ambiguous_residue", f"{ambiguous} of {length}")
    elif rare and dataset.rare_residues == "drop":
        ledger.drop_record(*file_and_record(where), id, "rare_residue", f"{rare} of {length}")
    elif length < dataset.min_length:
        ledger.drop_record(*file_and_record(where), id, "too_short", f"{length} < {dataset.min_length}")
    elif length > dataset.max_length:
        ledger.drop_record(*file_and_record(where), id, "too_long", f"{length} > {dataset.max_length}")
    else:
        return (letters.translate(MAPPED) if odd else letters).decode()
    return None


def letter_error(where: str, sequence: bytes) -> InputError | None:
    """Why it is no protein sequence at all; None if it is one."""
    invalid = invalid_letters(sequence, RESIDUES + (RARE + AMBIGUOUS).decode())
    if not invalid:
        return None
    letter = invalid[:1]
    what = f"{letter.decode('latin-1')!r} at position {sequence.index(letter) + 1} of the sequence is no residue"
    if letter in b"-.":
        return InputError(where, what, None, "unaligned sequences", "remove the gaps of the alignment", "gap")
    fix = "remove it; only one `*` at the very end is understood"
    return InputError(where, what, None, "one-letter residue codes", fix, "residue")


def letter_count(letters: bytes, sequence: bytes) -> int:
    return sum(map(sequence.count, letters))


def name_and_taxon(header: str) -> tuple[str, str]:
    """Name and taxon identifier; "" where the header has none."""
    if found := UNIREF_PLAIN.fullmatch(header):  # both are there
        name, tax_id = found.groups()
        return name, tax_id
    for pattern in HEADERS:
        if found := pattern.fullmatch(header):
            return found["name"] or "", found["tax_id"] or ""
    raise AssertionError("a header has an id")


def relation_over(dataset: ResidueOptions, covered: Literal["both", "shorter"]) -> mmseqs.Relation:
    """Related by identity over `coverage`; if that of one sequence is enough, not by what chance explains."""
    bits = CHANCE_BITS if covered == "shorter" else 0.0
    return mmseqs.Relation(dataset.identity, dataset.coverage, covered, bits=bits)


def group(records: Records, dataset: ResidueOptions) -> Iterable[str]:
    """The representative of each record's cluster; clusters with records of one unit are one group, named after the
    first. By protocol `random`, each record is alone."""
    if dataset.protocol == "random":
        return records.column("id").combine_chunks()
    home = mmseqs.cluster_sequences(TextById(records, "sequence"), relation_over(dataset, dataset.covered))
    clusters = [home[id] for id in records.texts("id")]
    links = splits.links_by_key(clusters, [*records.texts("unit")])
    return [clusters[root] for root in splits.connected_components(len(records), links)]


def find_leaks(held_out: Records, others: Records, dataset: ResidueOptions) -> dict[str, str]:
    """Others that a search with the held-out sequences finds: clustering compares with representatives only.

    Where `shorter` is enough, what covers both is related at any score too.
    """
    queries, targets = TextById(held_out, "sequence"), TextById(others, "sequence")
    hits = [
        hit
        for covered in dict.fromkeys(("both", dataset.covered))
        for hit in mmseqs.search_sequences(queries, targets, relation_over(dataset, covered))
    ]
    return {target: query for query, target, _ in sorted(hits, reverse=True)}


def count_overlaps(held_out: Records, others: Records, dataset: ResidueOptions) -> dict[str, dict]:
    """Records held out that are related to others, by the usual criteria of the field from strict to lax."""
    identity, coverage = dataset.identity, dataset.coverage
    relations = {
        f"{identity:.0%} identity over {coverage:.0%} of both": relation_over(dataset, "both"),
        f"{identity:.0%} identity over {coverage:.0%} of one, {CHANCE_BITS} bits": relation_over(dataset, "shorter"),
        "95% identity over 50 residues": mmseqs.Relation(0.95, columns=50),
    }
    return mmseqs.count_related(TextById(held_out, "sequence"), TextById(others, "sequence"), relations)


def proof(parts: Mapping[str, Records], dataset: ResidueOptions) -> dict[str, int]:
    return {
        "clusters_in_two_splits": splits.count_shared(parts, "group"),
        "units_in_two_splits": splits.count_shared(parts, "unit"),
        "sequences_in_two_splits": splits.count_shared(parts, "sequence"),
    }


def summary(records: Records) -> dict:
    lengths = np.sort(records.column("length").to_numpy())
    return {
        "residues": int(lengths.sum(dtype=np.int64)),
        "length": {"min": int(lengths[0]), "median": int(lengths[len(lengths) // 2]), "max": int(lengths[-1])},
        "taxa": sum(name.as_py() != "" for name in records.column("tax_id").unique()),
        "ambiguous_residues": sum(sequence.count("X") for sequence in records.texts("sequence")),
        "like_nucleotides": sum(looks_like_nucleotides(each.encode()) for each in records.texts("sequence")),
        "labels": count_labels(records),
    }
