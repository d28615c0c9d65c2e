"""What systems write freely beside what nature wrote: residues, and structures where there is a folding base."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from math import log2

from loratory.data.alphabets import RESIDUES
from loratory.domains.protein.sources import Task
from loratory.domains.protein.task import sample_residues
from loratory.domains.views import Answers, FoldedSample, View, card

POSITIONS = 15  # of a logo, from the first residue
TEST = "test records"
GROUPS = {"hydrophobic": "AVILMFWC", "polar": "STNQYGPH", "acidic": "DE", "basic": "KR"}
COLUMN, HEIGHT, CAPITAL = 20, 60, 14.5  # of a drawing, in its units; of a capital of the font of 20
MOST_BITS = log2(len(RESIDUES))
PLDDT = {"very high": 90, "confident": 70, "low": 50, "very low": 0}  # name: from
VIEWER = ("3Dmol-min.js", "chains.js")


def show_records(answers: Answers, task: Task) -> list[View]:
    written = {
        system: [found for text in texts if (found := sample_residues(text))]
        for system, texts in answers.samples.items()
    }
    written = {system: sequences for system, sequences in written.items() if sequences}
    views = []
    if written:
        natural = {TEST: [record["sequence"] for record in answers.records]}
        views.append(View("Residues of finished samples", residue_part(natural | written)))
    if answers.folded:
        views.append(View("Folded samples", folded_part(answers.folded), VIEWER))
    return views


def residue_part(sequences: Mapping[str, Sequence[str]]) -> str:
    colours = ", ".join(f'<b class="{group}">{letters}</b> {group}' for group, letters in GROUPS.items())
    cards = "".join(
        card(f"{system}: {len(own)} sequences", share_bars(own, sequences[TEST]), sequence_logo(own))
        for system, own in sequences.items()
    )
    return (
        f"<p>Left: the share of each residue, with a line at that of {TEST}. Right: the first {POSITIONS} residues; a "
        f"letter is as high as its share times what the position says, of {MOST_BITS:.2f} bits at most, and few "
        f'sequences seem to say more. <span class="logo">{colours}.</span></p>\n<div class="logos">{cards}</div>\n'
    )


def residue_shares(sequences: Sequence[str]) -> dict[str, float]:
    counts = Counter("".join(sequences))
    total = sum(counts[residue] for residue in RESIDUES)
    return {residue: counts[residue] / total if total else 0.0 for residue in RESIDUES}


def share_bars(sequences: Sequence[str], natural: Sequence[str]) -> str:
    """An SVG of the share of each residue, with a line at that of test records."""
    shares, usual = residue_shares(sequences), residue_shares(natural)
    most = max(*shares.values(), *usual.values()) or 1.0
    parts = []
    for number, residue in enumerate(RESIDUES):
        x, top, line = COLUMN * number, HEIGHT * shares[residue] / most, HEIGHT * (1 - usual[residue] / most)
        title = f"{residue}: {shares[residue]:.1%}, {TEST} {usual[residue]:.1%}"
        parts.append(
            f"<g><title>{title}</title>"
            f'<rect x="{x + 3}" y="{HEIGHT - top:.1f}" width="{COLUMN - 6}" height="{top:.1f}"/>'
            f'<line x1="{x}" x2="{x + COLUMN}" y1="{line:.1f}" y2="{line:.1f}"/>'
            f'<text x="{x + COLUMN / 2:g}" y="{HEIGHT + 14}">{residue}</text></g>'
        )
    return drawing("shares", f"share of each residue, up to {most:.0%}", COLUMN * len(RESIDUES), HEIGHT + 18, parts)


def sequence_logo(sequences: Sequence[str]) -> str:
    """An SVG of the first positions: each letter as high as its share of the position's information.

    Source: Schneider and Stephens 1990, doi:10.1093/nar/18.20.6097; without their correction for few sequences.
    """
    parts = []
    for position in range(POSITIONS):
        counts = Counter(sequence[position] for sequence in sequences if position < len(sequence))
        total = sum(counts.values())
        shares = {letter: count / total for letter, count in counts.items()}
        bits = MOST_BITS + sum(share * log2(share) for share in shares.values()) if total else 0.0
        y = float(HEIGHT)
        for letter, share in sorted(shares.items(), key=lambda item: (item[1], item[0])):
            height = HEIGHT * bits / MOST_BITS * share
            if height >= 1:
                place = f"translate({COLUMN * (position + 0.5):g} {y:.1f}) scale(1 {height / CAPITAL:.3f})"
                kind = next((group for group, letters in GROUPS.items() if letter in letters), "other")
                parts.append(f'<text class="{kind}" transform="{place}">{escape(letter)}</text>')
            y -= height
    return drawing("logo", f"logo of residues 1 to {POSITIONS}", COLUMN * POSITIONS, HEIGHT, parts)


def drawing(kind: str, label: str, width: int, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f'<svg class="{kind}" role="img" aria-label="{label}" viewBox="0 0 {width} {height}">\n{body}\n</svg>\n'


def folded_part(folded: Sequence[FoldedSample]) -> str:
    colours = ", ".join(
        f'<b class="plddt" data-from="{least}">■</b> {name} (pLDDT from {least})' for name, least in PLDDT.items()
    )
    note = "The first finished samples by id. Grey: the nearest known chain, laid on it. Drag to turn."
    return f'<p>{note} {colours}.</p>\n<div class="chains">{"".join(map(chain_card, folded))}</div>\n'


def chain_card(sample: FoldedSample) -> str:
    near = f"; nearest: {sample.near}, TM-score {sample.tm:.2f}" if sample.tm is not None else ""
    facts = f"{len(sample.sequence)} residues, mean pLDDT {sample.plddt:.0f}{near}"
    data = json.dumps({"model": sample.model, "reference": sample.reference}).replace("<", "\\u003c")
    stage = f'<div class="stage"></div><script type="application/json">{data}</script>'
    return card(f"{sample.system}, {sample.id}", f"<p>{escape(facts)}</p>\n", f'<div class="chain">{stage}</div>\n')
