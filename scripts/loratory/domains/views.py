"""What a page shows of single records, and what a domain makes it of. Standard library only.

A domain that has views defines `show_records` in its `views.py` (`contract.ViewsModule`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True)
class View:
    """A section of a domain's page.

    Attributes:
        title: its heading, as text.
        html: what stands below; all that comes from files, configs and systems is escaped in it.
        scripts: files of `reporting/viewer` that the page loads for it, in this order.
    """

    title: str
    html: str
    scripts: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoldedSample:
    """The structure of a sample, with the known chain that is nearest to it laid on it.

    Attributes:
        system, id: whose sample it is. sequence: its residues. plddt: the mean over them, 0–100.
        model: PDB text of its backbone, pLDDT in the B-factors.
        near: the known chain's id, "" where there is none. tm: TM-score to it, normalised by the longer of both.
        reference: PDB text of the known chain in the sample's place.
    """

    system: str
    id: str
    sequence: str
    plddt: float
    model: str
    near: str = ""
    tm: float | None = None
    reference: str = ""


@dataclass(frozen=True)
class Answers:
    """Test records, and what a few systems say of them with the first seed.

    Attributes:
        base: the base's name.
        records: those that systems are asked about, in id order.
        rows: {system: {id: its row, see `contract.ROW`}}: the base, its best adapter, its best mixture, and the best
            control without a language model, as far as they are there.
        control: which of these systems is the control, "" for none.
        best: which of the adapter and the mixture is better by the primary metric; the base where there is neither.
        samples: {system: what it wrote freely}, of the same systems and of the controls that write.
        folded: samples of these systems as structures.
    """

    base: str
    records: Sequence[dict]
    rows: Mapping[str, Mapping[str, dict]]
    control: str
    best: str
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folded: Sequence[FoldedSample] = ()

    @property
    def learnt(self) -> dict[str, Mapping[str, dict]]:
        """`rows` without the control's."""
        return {system: rows for system, rows in self.rows.items() if system != self.control}


def surest_records(answers: Answers, label: Callable[[dict], int], count: int) -> tuple[list[dict], list[dict]]:
    """The records that the best system is surest about among those that it gets right, and among those it gets wrong.

    Args:
        label: record -> 1 if the second choice is right, else 0. count: most records of either.
    """
    p = {id: row["p"] for id, row in answers.rows.get(answers.best, {}).items() if row["p"] is not None}
    known = sorted(
        (record for record in answers.records if record["id"] in p),
        key=lambda record: (-abs(p[record["id"]] - 0.5), record["id"]),
    )
    right = [record for record in known if (p[record["id"]] >= 0.5) == label(record)]
    wrong = [record for record in known if (p[record["id"]] >= 0.5) != label(record)]
    return right[:count], wrong[:count]


def probability_table(answers: Answers, id: str, choices: Sequence[str], label: int) -> str:
    """What each system says of a record, beside whether that is right."""
    lines = []
    for system, rows in answers.rows.items():
        p = rows[id]["p"] if id in rows else None
        if p is not None:
            said = int(p >= 0.5)
            mark = "right" if said == label else "wrong"
            meter = f'<meter min="0" max="1" value="{p:.4f}">{p:.2f}</meter>'
            lines.append([escape(system), f"{meter} {p:.2f}", f"{escape(choices[said].strip())} {verdict(mark)}"])
    return small_table(["system", f"P({escape(choices[1].strip())})", "says"], lines)


def verdict(mark: str) -> str:
    """`right` or `wrong`, told apart by a sign and not by colour alone."""
    return f'<span class="{mark}">{"✓" if mark == "right" else "✗"} {mark}</span>'


def small_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in lines
    )
    table = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table class="small">\n{table}</table></div>\n'


def card(heading: str, *parts: str, anchor: str = "") -> str:
    """A box around what belongs to one record; `heading` is text, the parts are HTML."""
    name = f' id="{escape(anchor, quote=True)}"' if anchor else ""
    return f'<article class="card"{name}>\n<h4>{escape(heading)}</h4>\n{"".join(parts)}</article>\n'


def short_text(text: str, longest: int = 600) -> str:
    """Text as HTML, cut where it is too long to be looked at."""
    return escape(text if len(text) <= longest else f"{text[: longest - 1]}…")
