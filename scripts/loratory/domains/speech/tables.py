"""Tables of utterances: CSV, tabs, parquet, or an object of JSON on each line."""

from collections.abc import Iterator

from loratory.data.ledger import Ledger
from loratory.data.tables import read_table
from loratory.domains.speech.sources import Columns
from loratory.domains.speech.utterances import Utterance


def table_utterances(path: str, columns: Columns, encoding: str, ledger: Ledger) -> Iterator[Utterance]:
    """An utterance for each row. Without a start, `duration` is how long the recording is, which is then held
    against it."""
    for where, row in read_table(path, columns.model_dump(), ledger, encoding, columns.optional()):
        start, end, seconds = row["start"], row["end"], row["duration"]
        yield Utterance(
            id=row["id"],
            where=where,
            audio=row["audio"],
            text=row["text"] or None,
            speaker=row["speaker"],
            times=(start or 0.0, end or (added_seconds(start, seconds) if start and seconds else -1.0)),
            seconds="" if start or end else seconds,
            age=row["age"],
            gender=row["gender"],
        )


def added_seconds(start: str, seconds: str) -> float | str:
    try:
        return float(start) + float(seconds)
    except ValueError:
        return f"{start} + {seconds}"  # which is refused as no time
