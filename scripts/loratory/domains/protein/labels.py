"""Labels of proteins, from UniProt's tables or one's own: joined to records by id, as texts `property=value`."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pyarrow.compute as pc

from loratory.data.ledger import Ledger
from loratory.data.records import Records
from loratory.data.sampling import file_and_record
from loratory.data.tables import read_table
from loratory.domains.protein.sources import Dataset, Files, Label
from loratory.errors import InputError, short_value

EC_NUMBER = re.compile(r"[1-9]\d*(\.(n?\d+|-)){0,3}")
RESERVED = re.compile(r"[<>\r\n]")  # brackets enclose a label in an instruction
ALIASES = re.compile(r"(?:sp|tr)\|(?P<accession>[^|\s]+)\|(?P<name>\S+)|UniRef\d+_(?P<member>\S+)")
TABLES = "labels"  # the name of their account in the dataset card


class LabelTables:
    """The rows of label tables by id, and the account of these rows: joined to a record, or rejected with a reason.

    Raises:
        InputError: as `read_table`; with `on_error: fail` also a row without an id, a value that is no label, and two
            values where a record may have one, in a row or in two rows of one id.
    """

    def __init__(self, files: Files, dataset: Dataset) -> None:
        self.files, self.dataset = files, dataset
        self.ledger = Ledger(dataset.on_error)
        self.rows: dict[str, list[tuple[str, list[str]]]] = {}  # id: (file:row, labels)
        self.joined: set[str] = set()
        self.last_id = ""  # that was looked for
        for path in files.labels:
            for where, id, labels in self.labelled_rows(path):
                self.rows.setdefault(id, []).append((where, labels))
        for id in [*self.rows]:
            self.check_rows(id)

    def labelled_rows(self, path: str) -> Iterator[tuple[str, str, list[str]]]:
        """`(file:row, id, labels)` of the rows that have any."""
        columns = {"id": self.files.label_id} | label_columns(self.dataset)
        for where, row in read_table(path, columns, self.ledger, self.files.encoding):
            if not row["id"]:
                expected = "a value in this column"
                self.ledger.note_error(InputError(where, "row without an id", columns["id"], expected, reason="no_id"))
                continue
            try:
                labels = parse_labels(where, row, self.dataset.labels)
            except InputError as error:
                self.ledger.note_error(error, row["id"])
                continue
            if labels:
                yield where, row["id"], labels
            else:
                self.ledger.count_dropped("no_label")

    def check_rows(self, id: str) -> None:
        """Takes rows of one id that contradict each other to the ledger, all of them: neither is known to be right."""
        rows = self.rows[id]
        together = sorted({label for _, labels in rows for label in labels})
        twice = contradicted_property(together, self.dataset.labels)
        if twice is None:
            return
        for where, labels in rows:
            other = next(place for place, given in rows if given != labels)
            what = f"its {twice} contradicts that at {other}"
            values = ", ".join(label_values(labels, twice)) or "none"
            fix = f"correct one, or say `several: true` of {twice}"
            self.ledger.note_error(InputError(where, what, values, "one value", fix, "contradicting_labels"), id)
        del self.rows[id]

    def find_labels(self, id: str) -> list[str]:
        """The labels of a record, by its id or by the accession or name in it."""
        self.last_id = id
        known = [name for name in id_aliases(id) if name in self.rows]
        self.joined.update(known)
        return sorted({label for name in known for _, labels in self.rows[name] for label in labels})

    def close_account(self) -> Ledger:
        """The account of all rows, once every record was looked for.

        Raises:
            InputError: no row belongs to a record, or too many rows are malformed.
        """
        if self.rows and not self.joined:
            what, first = "no id of the label tables is that of a record", next(iter(self.rows))
            fix = "name the column of the records' ids in `label_id`"
            raise InputError(
                self.files.labels[0], what, first, f"ids such as {short_value(self.last_id)}", fix, "unmatched"
            )
        kept = 0
        for id, rows in self.rows.items():
            for where, _ in rows:
                if id in self.joined:
                    kept += 1
                else:
                    self.ledger.drop_record(*file_and_record(where), id, "unmatched_id", "no record has this id")
        self.ledger.check_counts(TABLES, kept, self.dataset.max_reject_fraction)
        return self.ledger


def label_columns(dataset: Dataset) -> dict[str, str]:
    """{key of a row: column that holds a property}."""
    return {column_key(name): label.column for name, label in dataset.labels.items()}


def column_key(name: str) -> str:
    """Apart from the keys of other columns, whatever the property is called."""
    return f"label {name}"


def parse_labels(where: str, row: Mapping[str, str], options: Mapping[str, Label]) -> list[str]:
    """The labels of a row of `label_columns`, sorted.

    Raises:
        InputError: a value that is no label, or two where a record may have one.
    """
    found = []
    for name, label in options.items():
        values = cell_values(where, row[column_key(name)], label)
        if len(values) > 1 and not label.several:
            fix = f"leave one, or say `several: true` of {name}"
            what, given = f"{len(values)} values of {name}", ", ".join(values)
            raise InputError(where, what, given, "one value", fix, "contradicting_labels")
        found += [f"{name}={value}" for value in values]
    return sorted(found)


def cell_values(where: str, cell: str, label: Label) -> list[str]:
    """The labels that a cell names, sorted."""
    parts = [part.strip() for part in (cell.split(label.separator) if label.separator else [cell])]
    cut = [enzyme_class(where, part, label.levels) if label.levels else part for part in filter(None, parts)]
    values = sorted({label.names.get(value, "") if label.names else value for value in cut} - {""})
    for value in values:
        if RESERVED.search(value):
            what, expected = "a label with letters that enclose labels", "neither `<` nor `>` nor line ends"
            raise InputError(where, what, value, expected, "say what it is called in `names`", "label_letters")
    return values


def enzyme_class(where: str, number: str, levels: int) -> str:
    """The first fields of an EC number; "" where it does not go so far.

    Raises:
        InputError: it is no EC number.
    """
    if not EC_NUMBER.fullmatch(number):
        fix = "leave `levels` out if the column holds something else"
        raise InputError(where, "no EC number", number, "numbers such as 3.4.21.4 or 3.4.-.-", fix, "ec_number")
    fields = number.split(".")[:levels]
    return "" if len(fields) < levels or "-" in fields else ".".join(fields)


def id_aliases(id: str) -> list[str]:
    """What a label table may call a record: its id, UniProt's accession and entry name, a cluster's representative."""
    match = ALIASES.fullmatch(id)
    return [id, *filter(None, match.groups())] if match else [id]


def label_values(labels: Sequence[str], name: str) -> list[str]:
    """The values of one property."""
    return [label.removeprefix(f"{name}=") for label in labels if label.startswith(f"{name}=")]


def contradicted_property(labels: Sequence[str], options: Mapping[str, Label]) -> str | None:
    """The first property with more values than it may have."""
    single = [name for name, label in options.items() if not label.several]
    return next((name for name in single if len(label_values(labels, name)) > 1), None)


def record_label(record: Mapping, name: str) -> str | None:
    """A record's value of a property; None without one, and where it has several."""
    values = label_values(record["labels"], name)
    return values[0] if len(values) == 1 else None


def count_labels(records: Records) -> dict[str, dict[str, dict]]:
    """{property: {split: how many `records` have none, one or several values, and how many have each of the
    `values`}}, of records with a column `split`."""
    found: dict[str, dict[str, dict]] = {}
    column = records.column("labels")
    names = sorted({label.partition("=")[0] for label in pc.list_flatten(column).unique().to_pylist()})
    homes, labels = ([*records.texts("split")], column.to_pylist()) if names else ([], [])
    for name in names:
        for split in dict.fromkeys(homes):
            given = [label_values(each, name) for home, each in zip(homes, labels) if home == split]
            sizes = Counter("none" if not each else "one" if len(each) == 1 else "several" for each in given)
            counts = Counter(value for each in given for value in each)
            found.setdefault(name, {})[split] = {"records": dict(sizes), "values": dict(sorted(counts.items()))}
    return found


def require_labels(found: Mapping[str, int], dataset: Dataset) -> None:
    """Raises:
    InputError: no record has a value of a property that the config names.
    """
    for name, label in dataset.labels.items():
        if not found.get(name):
            fix = "check its `column`, `levels` and `names`"
            raise InputError(f"dataset.labels.{name}", "no record has a value of it", label.column, fix=fix)
