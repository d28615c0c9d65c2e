"""Transcripts with their reading frames, and what systems take them for."""

from html import escape

from loratory.domains.lncrna.frames import longest_frame, open_frames
from loratory.domains.lncrna.sources import Task
from loratory.domains.lncrna.task import CHOICES
from loratory.domains.views import Answers, View, card, probability_table, surest_records

SHOWN = 3  # transcripts that are right, and that are wrong
SHORTEST = 30  # nucleotides of a frame that is drawn
WIDTH, HEIGHT, GAP = 1000, 12, 4  # of a track, in units of the drawing
NOTE = (
    "Reading frames of the sense strand, from a start to a stop codon or to the end, of {shortest} nucleotides and "
    "more: one line for each of the three frames. Those that {best} is surest about."
)


def show_records(answers: Answers, task: Task) -> list[View]:
    right, wrong = surest_records(answers, lambda record: record["label"], SHOWN)
    cards = [transcript_card(answers, record) for record in [*wrong, *right]]
    note = escape(NOTE.format(shortest=SHORTEST, best=answers.best))
    return [View("Transcripts, wrong and right", f"<p>{note}</p>\n{''.join(cards)}")] if cards else []


def transcript_card(answers: Answers, record: dict) -> str:
    length, truth = len(record["sequence"]), CHOICES[record["label"]].strip()
    start, longest = longest_frame(record["sequence"])
    where = f"longest frame {longest:,} nt, from {start + 1:,}" if longest else "no reading frame"
    facts = f"<p>{length:,} nt, {escape(truth)}; {where}</p>\n"
    table = probability_table(answers, record["id"], CHOICES, record["label"])
    return card(record["id"], facts, frame_track(record["sequence"]), table)


def frame_track(sequence: str) -> str:
    """An SVG of the three frames, each a line with a box for every open reading frame; the longest is outlined."""
    longest, scale = longest_frame(sequence), WIDTH / len(sequence)
    height = 3 * HEIGHT + 4 * GAP
    lines = []
    for frame in range(3):
        y = GAP + frame * (HEIGHT + GAP)
        lines.append(f'<line x1="0" x2="{WIDTH}" y1="{y + HEIGHT / 2:g}" y2="{y + HEIGHT / 2:g}"/>')
    for start, length in open_frames(sequence):
        if length >= SHORTEST or (start, length) == longest:
            y, kind = GAP + start % 3 * (HEIGHT + GAP), ' class="longest"' if (start, length) == longest else ""
            title = f"frame {start % 3 + 1}: {start + 1}–{start + length}, {length} nt"
            lines.append(
                f'<rect{kind} x="{start * scale:.1f}" y="{y}" width="{length * scale:.1f}" height="{HEIGHT}">'
                f"<title>{title}</title></rect>"
            )
    body = "\n".join(lines)
    label = f'role="img" aria-label="open reading frames of {len(sequence)} nucleotides"'
    return f'<svg class="track" {label} viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none">\n{body}\n</svg>\n'
