"""A laid-out table as Markdown, LaTeX, HTML, tab-separated or plain text. Standard library only: starts at once."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.data.files import atomic_write

MARKDOWN = str.maketrans({"\\": r"\\", "|": r"\|", "*": r"\*", "<": "&lt;", "\n": " "})
LATEX = str.maketrans(
    {letter: "\\" + letter for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "\n": " "}
    | {"▲": r"$^{+}$", "▼": r"$^{-}$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$"}
    | {"−": "$-$", "–": "--", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "±": r"$\pm$", "Å": r"\AA{}"}
    | {"…": r"\ldots{}", "Σ": r"$\Sigma$"}
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 1.5rem; }
h1 { font-size: 1.25rem; }
.banner { border-left: 4px solid #d55e00; background: #fdf3ec; padding: .5rem .8rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-top: 2px solid; border-bottom: 1px solid; }
tbody tr:last-child > * { border-bottom: 2px solid; }
tbody tr:nth-child(even) { background: #f5f6f8; }
tbody th { font-weight: normal; }
ul { color: #444; font-size: .87rem; max-width: 60rem; padding-left: 1.1rem; }
"""


@dataclass(frozen=True)
class Layout:
    """A table as people read it: every cell is text; the first column names the row.

    Attributes:
        banner: a warning above the table, or "".
        foot: sentences below it.
        records: the same results as plain values, for the tab-separated file.
    """

    title: str
    banner: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str]
    records: Sequence[Mapping]


def write_table(layout: Layout, out: Path | str) -> None:
    """Writes `{out}.tsv`, `{out}.md`, `{out}.tex` and `{out}.html`; the same layout gives the same bytes."""
    for suffix, form in {"tsv": tsv_text, "md": markdown_text, "tex": latex_text, "html": html_page}.items():
        with atomic_write(f"{out}.{suffix}") as aside:
            aside.write_text(form(layout))


def tsv_text(layout: Layout) -> str:
    """The records with all digits; empty where a value is null, lists joined by `;`."""
    text = io.StringIO()
    names = list(layout.records[0]) if layout.records else []
    writer = csv.DictWriter(text, names, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for record in layout.records:
        writer.writerow({name: plain_value(value) for name, value in record.items()})
    return text.getvalue()


def plain_value(value: Any) -> str:
    if isinstance(value, list):
        return ";".join(map(plain_value, value))
    return "" if value is None else " ".join(str(value).split())


def markdown_text(layout: Layout) -> str:
    header, *rows = pad_cells([[cell.translate(MARKDOWN) for cell in row] for row in (layout.header, *layout.rows)])
    rule = [":" + "-" * (len(header[0]) - 1), *("-" * (len(cell) - 1) + ":" for cell in header[1:])]
    lines = [f"# {layout.title.translate(MARKDOWN)}", ""]
    lines += [f"> **{layout.banner.translate(MARKDOWN)}**", ""] if layout.banner else []
    lines += [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", *(f"- {line.translate(MARKDOWN)}" for line in layout.foot), ""])


def plain_text(layout: Layout) -> str:
    """For the terminal: aligned columns, no markup."""
    lines = [layout.title, *([layout.banner] if layout.banner else [])]
    lines += ["  ".join(row).rstrip() for row in pad_cells([layout.header, *layout.rows])]
    return "\n".join([*lines, *layout.foot, ""])


def pad_cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Cells of one width in each column, at least 3; the first column to the left, the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows)]
    return [[row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))] for row in rows]


def latex_text(layout: Layout) -> str:
    """A `table` that needs no package."""
    header, *rows = ([cell.translate(LATEX) for cell in row] for row in (layout.header, *layout.rows))
    caption = ". ".join(filter(None, [layout.title, layout.banner])).translate(LATEX)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\hline",
            " & ".join(header) + r" \\",
            r"\hline",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\hline",
            r"\end{tabular}",
            r"\par\smallskip\raggedright\footnotesize",
            *(line.translate(LATEX) + r"\par" for line in layout.foot),
            r"\end{table}",
            "",
        ]
    )


def html_page(layout: Layout) -> str:
    """One HTML page that needs no other file."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in layout.header)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in layout.rows
    )
    banner = f'<p class="banner">{html.escape(layout.banner)}</p>\n' if layout.banner else ""
    foot = "\n".join(f"<li>{html.escape(line)}</li>" for line in layout.foot)
    title = html.escape(layout.title)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
{banner}<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<ul>
{foot}
</ul>
</body>
</html>
"""
