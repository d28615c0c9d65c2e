"""The account of every raw record: kept, or rejected with a reason."""

from collections import Counter
from pathlib import Path

from loratory.data.files import atomic_write
from loratory.errors import InputError, on_one_line

HEADER = ("file", "record", "id", "reason", "detail")
ROWS_OF_A_REASON = 10_000  # beyond, records are counted: a row each would fill memory where millions are left out


class Ledger:
    """Counts what was read and notes what was not kept.

    A reader calls `count_record` once for each raw record and then either yields it, calls `note_error` (malformed) or
    calls `drop_record` (sound but outside the policy, such as too short).

    Args:
        on_error: `fail` raises the first malformed record; `skip` notes it.

    Attributes:
        rows: file, record, id, reason and detail of rejected records, the first ROWS_OF_A_REASON of each reason.
        n_rejected: {reason: how many}, all of them.
        n_changed: {change: how many}: what was kept, and not as it stood.
        joined: {name: the account of tables whose rows are no records, but belong to some}.
    """

    def __init__(self, on_error: str = "fail") -> None:
        self.on_error = on_error
        self.n_in = 0
        self.n_malformed = 0
        self.rows: list[tuple[str, str, str, str, str]] = []
        self.first_error = ""
        self.n_rejected: Counter[str] = Counter()
        self.n_listed: Counter[str] = Counter()
        self.n_changed: Counter[str] = Counter()
        self.joined: dict[str, Ledger] = {}

    def count_record(self, n: int = 1) -> None:
        self.n_in += n

    def note_error(self, error: InputError, id: str = "") -> None:
        """A malformed record.

        Raises:
            InputError: with `on_error: fail`.
        """
        if self.on_error == "fail":
            raise error
        self.n_malformed += 1
        self.first_error = self.first_error or str(error)
        file, _, record = error.where.rpartition(":")
        self.add_row(file, record, id, error.reason, error.detail)

    def drop_record(self, file: Path | str, record: int | str, id: str, reason: str, detail: object = "") -> None:
        """A sound record that the dataset's policy leaves out."""
        self.add_row(str(file), str(record), id, reason, detail)

    def count_dropped(self, reason: str, n: int = 1) -> None:
        """Sound records that are left out and not listed: some of very many."""
        if n:
            self.n_rejected[reason] += n

    def count_change(self, change: str) -> None:
        """A record that is kept, and not as it stood."""
        self.n_changed[change] += 1

    def add_row(self, file: str, record: str, id: str, reason: str, detail: object) -> None:
        self.n_rejected[reason] += 1
        if self.n_listed[reason] < ROWS_OF_A_REASON:
            self.n_listed[reason] += 1
            where = on_one_line(file), on_one_line(record)
            self.rows.append((*where, on_one_line(id), reason, detail_text(detail)))

    def reason_counts(self) -> dict[str, int]:
        return dict(sorted(self.n_rejected.items()))

    def check_counts(self, where: Path | str, n_kept: int, max_reject_fraction: float) -> None:
        """Whether the account adds up.

        Raises:
            InputError: too many malformed records.
            AssertionError: records that are neither kept nor rejected: a fault of the reader.
        """
        if self.n_malformed > max_reject_fraction * self.n_in:
            raise InputError(
                where,
                f"{self.n_malformed} of {self.n_in} records are malformed",
                expected=f"at most {max_reject_fraction:.1%} of them (`max_reject_fraction`)",
                fix=f"mend the input; the first is {self.first_error}",
            )
        rejected = self.n_rejected.total()
        if self.n_in != n_kept + rejected:
            raise AssertionError(f"{where}: {self.n_in} read, {n_kept} kept, {rejected} rejected: lost records")

    def write_rejects(self, path: Path | str) -> None:
        """One tab-separated row for each listed record and joined row, sorted; then one for each reason with more."""
        accounts = (self, *self.joined.values())
        more = [row for account in accounts for row in account.unlisted_rows()]
        rows = sorted(tuple(str(cell).replace("\t", " ") for cell in row) for each in accounts for row in each.rows)
        with atomic_write(path) as aside:
            aside.write_text("".join("\t".join(row) + "\n" for row in [HEADER, *rows, *more]))

    def unlisted_rows(self) -> list[tuple[str, str, str, str, str]]:
        """A row for each reason that more records have than are listed."""
        return [
            ("-", "-", "-", reason, f"{count - self.n_listed[reason]} more, not listed")
            for reason, count in self.reason_counts().items()
            if count > self.n_listed[reason]
        ]


def detail_text(detail: object) -> str:
    """The detail on one line, cut to 200 characters; "-" if there is none."""
    return on_one_line(" ".join(str(detail).split()))[:200] if detail != "" else "-"
