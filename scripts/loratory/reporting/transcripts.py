"""Tables of transcripts: the words that are got wrong most, and how fast systems write."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from loratory.data.files import atomic_write, read_json
from loratory.reporting import formats
from loratory.reporting.formats import Layout

COUNTS = ("said", "substituted", "deleted", "inserted")
SHOWN = ("system", "word", *COUNTS, "heard_as", "id", "reference", "answer")
NOTES = [
    "said: how often the word stands in the references, all seeds together; heard as: what was written for it most "
    "often. *** stands where the other line has a word. Both lines are normalised.",
]
SPEED = ("system", "audio_seconds", "writing_seconds", "real_time_factor", "tokens_per_second", "systems")


def write_error_table(rows: Sequence[Mapping], out: Path | str, title: str, banner: str = "") -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html` of the rows of `evaluation.transcripts.worst_words`."""
    header = ["system", "word", *COUNTS, "heard as", "utterance", "reference", "answer"]
    cells = [[str(row[name]) for name in SHOWN] for row in rows]
    records = [{name: row[name] for name in dict.fromkeys([*SHOWN, *row])} for row in rows]
    formats.write_table(Layout(title, banner, header, cells, NOTES, records), out)


def write_speed_table(costs: Sequence[Path | str], out: Path | str) -> None:
    """Writes a tab-separated file of the seconds that each system took for a second of sound, all seeds together, and
    how many systems at most shared its batches, each of which has an equal part of their seconds.

    Args:
        costs: files `seed{n}.costs.json` of `evaluation.predict`.
    """
    totals: dict[str, dict[str, float]] = {}
    for path in costs:
        for system, cost in read_json(path).items():
            own = totals.setdefault(system, {"audio": 0.0, "writing": 0.0, "written": 0.0, "systems": 1})
            for name in ("audio", "writing", "written"):
                own[name] += cost[name]
            own["systems"] = max(own["systems"], cost.get("systems", 1))
    with atomic_write(out) as aside, open(aside, "w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(SPEED)
        for system, own in sorted(totals.items()):
            if own["audio"] and own["writing"]:
                factor, speed = own["writing"] / own["audio"], own["written"] / own["writing"]
                seconds = [f"{own[name]:.3f}" for name in ("audio", "writing")]
                writer.writerow([system, *seconds, f"{factor:.4f}", f"{speed:.1f}", int(own["systems"])])
