"""Transcripts of two FASTA roles → records whose label is the role, never the header."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa

from loratory.data import mmseqs, splits
from loratory.data.alphabets import IUPAC_NUCLEOTIDES, RESIDUES, invalid_letters
from loratory.data.fasta import read_fasta
from loratory.data.files import require_distinct_files
from loratory.data.ledger import Ledger
from loratory.data.records import Records, TextById, spill_records
from loratory.data.sampling import file_and_record, text_digest
from loratory.data.splits import hash_position
from loratory.data.tables import read_sequence_rows
from loratory.domains.lncrna.frames import longest_orf
from loratory.domains.lncrna.headers import parse_header, read_gene_table, without_version
from loratory.domains.lncrna.sources import Dataset, Files, HeaderFormat
from loratory.errors import InputError

DISTINCT = ""
COLUMNS = {"sequence": "string", "length": "int32", "label": "int8", "gene": "string"}
FOUND = pa.schema(
    {"id": "string", **COLUMNS, "where": "string", "digest": pa.binary(16)}  # before it is known what is unique
)
LABELS = {"coding": 0, "noncoding": 1}  # field of `Files` → label: lncRNA is the positive class

OFFICIAL_TRAIN, OFFICIAL_ITEMS = 0.9, ("transcript", "frame")  # of LoRA-BERT's code: share of train, what is shuffled

CANONICAL = bytes.maketrans(b"URYSWKMBDHV", b"TNNNNNNNNNN")


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields validated records; sequences are DNA letters in upper case, every ambiguity code written as N.

    Raises:
        InputError: a malformed record (with `on_error: fail`), or no record left of a class.
    """
    files, genes = files.expand_patterns(), read_gene_table(files.genes)
    require_distinct_files((role, path) for role in files.PATTERNS for path in getattr(files, role))
    found = spill_records(read_all(files, genes, dataset, ledger), FOUND)  # what has one label shows at the end
    kept = found.select(unique_transcripts(found, ledger))
    labels = kept.column("label").unique().to_pylist()
    for role, label in LABELS.items():
        if label not in labels:
            what = f"only one class: no {role} transcript is left; rejected: {ledger.reason_counts()}"
            where = ", ".join([*getattr(files, role), *files.tables])
            raise InputError(where, what, expected="transcripts of both classes", reason="one_class")
    for record in kept:
        del record["digest"]
        yield record


def read_all(files: Files, genes: dict[str, str], dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """The records of all files, with `where` and the `digest` of their sequence."""
    parts = [
        read_transcripts(path, label, files.header, genes, dataset, ledger)
        for role, label in LABELS.items()
        for path in getattr(files, role)
    ]
    parts += [read_rows(path, files, genes, dataset, ledger) for path in files.tables]
    for where, record in chain.from_iterable(parts):
        yield {**record, "where": where, "digest": text_digest(record["sequence"])}


def read_transcripts(
    path: str, label: int, form: HeaderFormat, genes: dict[str, str], dataset: Dataset, ledger: Ledger
) -> Iterator[tuple[str, dict]]:
    """Yields `(file:record, record)` of what is well formed and within the dataset's policy.

    Args:
        genes: {transcript, with its version or without: gene}; goes before the header.
    """
    for where, name, header, raw in read_fasta(path, ledger):
        try:
            id, gene = parse_header(where, header, len(raw), form)
            gene = genes.get(id) or genes.get(without_version(id)) or gene
            record = transcript_record(where, id, raw, label, gene)
        except InputError as error:
            ledger.note_error(error, name)
            continue
        if is_within_policy(where, record, dataset, ledger):
            yield where, record


def read_rows(
    path: str, files: Files, genes: dict[str, str], dataset: Dataset, ledger: Ledger
) -> Iterator[tuple[str, dict]]:
    """As `read_transcripts`, of a table whose rows say class and gene."""
    for where, id, row in read_sequence_rows(path, files.columns.named_columns(), ledger):
        gene = genes.get(id) or genes.get(without_version(id)) or row.get("group", "")
        try:
            label = row_label(where, row["label"], files)
            record = transcript_record(where, id, row["sequence"].encode(), label, gene)
        except InputError as error:
            ledger.note_error(error, id)
            continue
        if is_within_policy(where, record, dataset, ledger):
            yield where, record


def row_label(where: str, value: str, files: Files) -> int:
    """Raises:
    InputError: a value that `labels` does not name.
    """
    if value in files.labels:
        return LABELS[files.labels[value]]
    what, expected = f"unknown class in column `{files.columns.label}`", ", ".join(files.labels)
    fix = "say in `labels` what it means, as `labels: {mRNA: coding, lncRNA: noncoding}`"
    raise InputError(where, what, value, expected, fix, "label")


def transcript_record(where: str, id: str, raw: bytes, label: int, gene: str) -> dict:
    """Raises:
    InputError: as `canonical_sequence`.
    """
    sequence = canonical_sequence(where, raw)
    return {"id": id, "sequence": sequence, "length": len(sequence), "label": label, "gene": gene}


def is_within_policy(where: str, record: dict, dataset: Dataset, ledger: Ledger) -> bool:
    """Whether the record is kept; if not, it went to the ledger."""
    refused = drop_reason(record["sequence"], dataset)
    if refused:
        ledger.drop_record(*file_and_record(where), record["id"], *refused)
    return not refused


def canonical_sequence(where: str, raw: bytes) -> str:
    """The sequence in upper-case DNA letters, with N for every code that stands for several nucleotides.

    Raises:
        InputError: a letter that is no nucleotide code, or both U and T.
    """
    letters = raw.upper()
    invalid = invalid_letters(letters, IUPAC_NUCLEOTIDES)[:1]
    if invalid:
        letter, position = invalid.decode("latin-1"), letters.index(invalid) + 1
        what = "looks like protein" if letter in RESIDUES else "not a nucleotide"
        fix = "give transcripts as nucleotides"
        raise InputError(where, f"{what}, position {position}", letter, "A C G T U N", fix, "alphabet")
    if b"U" in letters and b"T" in letters:
        u, t = letters.index(b"U") + 1, letters.index(b"T") + 1
        what = f"both U and T, at positions {u} and {t}"
        raise InputError(
            where, what, expected="RNA or DNA letters, not both", fix="mend the record", reason="mixed_ut"
        )
    return letters.translate(CANONICAL).decode("ascii")


def drop_reason(sequence: str, dataset: Dataset) -> tuple[str, str] | None:
    """`(reason, detail)` where the dataset's policy leaves the sequence out."""
    length, ambiguous = len(sequence), sequence.count("N") / len(sequence)
    if length < dataset.min_length:
        return "too_short", f"{length} < {dataset.min_length} nt"
    if length > dataset.max_length:
        return "too_long", f"{length} > {dataset.max_length} nt"
    if ambiguous > dataset.max_ambiguous:
        return "ambiguous", f"{ambiguous:.1%} > {dataset.max_ambiguous:.1%}"
    return None


def unique_transcripts(found: Records, ledger: Ledger) -> np.ndarray:
    """Places of what is kept: each sequence once, under its smallest id, if all its copies have one label.

    An id in both classes, or with two sequences, is malformed; a sequence with both labels is dropped, all copies.
    """
    ids, labels, digests, places = (found.column(name).to_pylist() for name in ("id", "label", "digest", "where"))
    homes: dict[int, dict[str, int]] = {label: {} for label in LABELS.values()}  # the first of each id
    sequences: dict[int, set[bytes]] = {label: set() for label in LABELS.values()}
    for at, (id, label, digest) in enumerate(zip(ids, labels, digests)):
        homes[label].setdefault(id, at)
        sequences[label].add(digest)
    first: dict[str, int] = {}
    kept: dict[bytes, str] = {}
    for at in sorted(range(len(ids)), key=ids.__getitem__):
        id, digest, other = ids[at], digests[at], 1 - labels[at]
        where, place = places[at], file_and_record(places[at])
        if id in homes[other]:
            what = f"one id in both classes, also at {places[homes[other][id]]}"
            fix = "remove it from one class; a file that holds both is split by class, or read as a table with labels"
            ledger.note_error(InputError(where, what, id, "one class for each id", fix, "label_conflict"), id)
        elif digest in sequences[other]:
            ledger.drop_record(*place, id, "label_conflict", "the same sequence stands in the other class")
        elif digest in kept:
            ledger.drop_record(*place, id, "duplicate", f"the sequence of {kept[digest]}")
        elif id in first:
            what = f"one id, two sequences, first seen at {places[first[id]]}"
            ledger.note_error(InputError(where, what, id, "unique ids", "rename or remove one", "duplicate_id"), id)
        else:
            first[id], kept[digest] = at, id
    return np.sort(np.fromiter(first.values(), np.int64))


def group(records: Records, dataset: Dataset) -> list[str]:
    """Connected components of `same gene` and `same cluster`, named after their smallest id.

    By protocol `random`, each record is alone.
    """
    ids = [*records.texts("id")]
    if dataset.protocol == "random":
        return ids
    cluster = mmseqs.cluster_sequences(TextById(records, "sequence"), similar_when(dataset))
    links = splits.links_by_key([*records.texts("gene")], [cluster[id] for id in ids])
    return [ids[root] for root in splits.connected_components(len(ids), links)]


def split(records: Records, dataset: Dataset, seed: int, ledger: Ledger) -> Records:
    """Splits the groups of each class apart, so that every split has both classes in about the same share.

    A group that holds both classes counts as the class of the record it is named after.
    """
    groups, label = [*records.texts("group")], dict(zip(records.texts("id"), records.column("label").to_pylist()))
    home: dict[str, str] = {}
    for role, wanted in LABELS.items():
        of_class = [name for name in groups if label[name] == wanted]
        home |= zip(of_class, splits.assign_splits(of_class, dataset.split.model_dump(), seed, f"lncrna, {role}"))
    return records.with_column("split", [home[name] for name in groups])


def find_leaks(held_out: Records, others: Records, dataset: Dataset) -> dict[str, str]:
    """The records among `others` that are similar to a held-out one."""
    queries, targets = TextById(others, "sequence"), TextById(held_out, "sequence")
    hits = mmseqs.search_sequences(queries, targets, similar_when(dataset))
    return {other: source for other, source, _ in hits}


def count_overlaps(held_out: Records, others: Records, dataset: Dataset) -> dict[str, dict]:
    """Transcripts held out that are similar to others, from strict to lax, and to others of the other class: labels
    that cannot both be told from the letters."""
    identity, coverage = dataset.identity, dataset.coverage
    relations = {
        f"{identity:.0%} identity over {coverage:.0%} of both": replace(similar_when(dataset), covered="both"),
        f"{identity:.0%} identity over {coverage:.0%} of one": replace(similar_when(dataset), covered="shorter"),
    }
    left, right = TextById(held_out, "sequence"), TextById(others, "sequence")
    found = mmseqs.count_related(left, right, relations)
    hits = mmseqs.search_sequences(left, right, mmseqs.Relation(0.95, columns=200, nucleotide=True))
    found["95% identity over 200 nucleotides"] = {"records": len({query for query, _, _ in hits}), "sensitivity": None}
    label = {id: label for part in (held_out, others) for id, label in zip(part.texts("id"), part.column("label"))}
    contradicted = {query for query, target, _ in hits if label[query] != label[target]}
    found["the same with the other label"] = {"records": len(contradicted), "sensitivity": None}
    unnamed = sum(not gene for gene in held_out.texts("gene"))
    if unnamed < len(held_out):  # where no gene is known at all, it says nothing of single records
        found["perhaps a gene (none is named)"] = {"records": unnamed, "sensitivity": None}
    return found | (official_overlaps(held_out, others) if dataset.compat == "official" else {})


def official_overlaps(held_out: Records, others: Records) -> dict[str, dict]:
    """What held-out transcripts would share with train if all records were split as LoRA-BERT's code does.

    This is the project's interpretation of that code (https://github.com/Nick-Jeon/LoRA_BERT): a transcript and its
    longest frame are two items, and nine tenths of all items, shuffled, are learnt from.
    """

    def is_learnt(record: dict, reading: str) -> bool:
        return hash_position(f"{record['id']} {reading}", 0) < OFFICIAL_TRAIN

    learnt = {
        record["id"] for record in chain(held_out, others) if any(is_learnt(record, item) for item in OFFICIAL_ITEMS)
    }
    of_gene = Counter(record["gene"] for record in chain(held_out, others) if record["id"] in learnt)
    counts = {
        "its own reading frame": sum(bool(longest_orf(r["sequence"])) and is_learnt(r, "frame") for r in held_out),
        "another transcript of its gene": sum(
            bool(r["gene"]) and of_gene[r["gene"]] > (r["id"] in learnt) for r in held_out
        ),
    }
    return {
        f"{what}, in train by LoRA-BERT's own split": {"records": count, "sensitivity": 1.0}
        for what, count in counts.items()
    }


def similar_when(dataset: Dataset) -> mmseqs.Relation:
    """What may not stand in two splits."""
    return mmseqs.Relation(dataset.identity, dataset.coverage, dataset.covered, nucleotide=True)


def proof(parts: Mapping[str, Records], dataset: Dataset) -> dict[str, int]:
    """Counts that are 0 in a sound dataset."""
    return {
        "groups_in_two_splits": splits.count_shared(parts, "group"),
        "genes_in_two_splits": splits.count_shared(parts, "gene"),
        "sequences_in_two_splits": splits.count_shared(parts, "sequence"),
        "splits_without_both_classes": sum(len(part.column("label").unique()) < 2 for part in parts.values()),
    }


def summary(records: Records) -> dict:
    """Of each class: records in each split, genes named, and the lengths' minimum, quartiles and maximum (nt)."""
    labels, homes, genes, lengths = (records.column(name).to_numpy() for name in ("label", "split", "gene", "length"))
    return {
        role: {
            "records": dict(sorted(Counter(homes[of_class]).items())),
            "genes": len({*genes[of_class]} - {""}),
            "lengths": np.quantile(lengths[of_class], [0, 0.25, 0.5, 0.75, 1]).tolist(),
        }
        for role, label in LABELS.items()
        if (of_class := labels == label).any()
    }
