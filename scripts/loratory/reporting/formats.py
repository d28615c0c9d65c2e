"""A laid-out table as Markdown, LaTeX, HTML, tab-separated or plain text. Standard library only: starts at once."""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.data.files import atomic_write, read_json

MARKDOWN = str.maketrans({"\\": r"\\", "|": r"\|", "*": r"\*", "<": r"\<", "\n": " "})
LINK = "](", r"]\("  # of a page or a picture that a name would fetch from elsewhere
LATEX = str.maketrans(
    {letter: "\\" + letter for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "\n": " "}
    | {"▲": r"$^{+}$", "▼": r"$^{-}$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$"}
    | {"−": "$-$", "–": "--", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "±": r"$\pm$", "Å": r"\AA{}"}
    | {"…": r"\ldots{}", "Σ": r"$\Sigma$"}
)
STYLE, SORT = ((Path(__file__).parent / f"page.{kind}").read_text() for kind in ("css", "js"))
NO_VALUE = re.compile(r"–|(?:undefined|not run).*|(?:class )?(?:n|groups) < \d.*")  # a cell that says why it has none
TABLE_MARK = "<!-- table -->"


@dataclass(frozen=True)
class Layout:
    """A table as people read it: every cell is text; the first column names the row.

    Attributes:
        banner: a warning above the table, or "".
        foot: sentences below it.
        records: the same results as plain values, for the tab-separated file.
        main: how many columns a page shows at first, the others at a click; 0 for all. Those without a single value
            are shown at a click too.
    """

    title: str
    banner: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str]
    records: Sequence[Mapping]
    main: int = 0


def base_sentence(manifest: Path | str) -> str:
    """What a base is, by its `base.json`: its note, and the precision that its weights are held in, if not fp32."""
    base = read_json(manifest)
    precision = base.get("precision", "fp32")
    held = f"its weights are held in {precision}" if precision != "fp32" else ""
    return "; ".join(filter(None, [base["note"], held]))


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
    header, *rows = pad_cells([[markdown_cell(cell) for cell in row] for row in (layout.header, *layout.rows)])
    rule = [":" + "-" * (len(header[0]) - 1), *("-" * (len(cell) - 1) + ":" for cell in header[1:])]
    lines = [f"# {markdown_cell(layout.title)}", ""]
    lines += [f"> **{markdown_cell(layout.banner)}**", ""] if layout.banner else []
    lines += [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", *(f"- {markdown_cell(line)}" for line in layout.foot), ""])


def markdown_cell(text: str) -> str:
    """A text that means itself in Markdown, on one line."""
    return text.translate(MARKDOWN).replace(*LINK)


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


def later_columns(layout: Layout) -> set[int]:
    """The columns that a page shows at a click: those beyond `main`, and those without a value in any row."""
    empty = {at for at, cells in enumerate(zip(*layout.rows)) if at and all(map(NO_VALUE.fullmatch, cells))}
    return empty | set(range(layout.main or len(layout.header), len(layout.header)))


def html_table(layout: Layout) -> str:
    """Banner, table and foot: a box shows `later_columns`, a click on a heading sorts."""
    later = later_columns(layout)
    more = [' class="more"' if column in later else "" for column in range(len(layout.header))]
    head = "".join(
        f'<th scope="col"{kind}><button>{html.escape(cell)}</button></th>' for kind, cell in zip(more, layout.header)
    )
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(more[1:], row[1:]))
        + "</tr>"
        for row in layout.rows
    )
    banner = f'<p class="banner">{html.escape(layout.banner)}</p>\n' if layout.banner else ""
    name = html.escape(f"all of {layout.title}", quote=True)
    box = (
        f'<input type="checkbox" class="all" id="{name}"> <label for="{name}">all columns</label>\n'
        if any(more)
        else ""
    )
    foot = "\n".join(f"<li>{html.escape(line)}</li>" for line in layout.foot)
    return f"""{banner}<div>{box}<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div></div>
<ul class="foot">
{foot}
</ul>
"""


def html_page(layout: Layout) -> str:
    """One HTML page that needs no other file; `table_part` finds the table in it again."""
    title = html.escape(layout.title)
    return whole_page(title, f"<h1>{title}</h1>\n{TABLE_MARK}{html_table(layout)}{TABLE_MARK}")


def whole_page(title: str, body: str) -> str:
    """A page of the project's looks, for screens of any width, light or dark, and for paper."""
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head>
<body>
{body}<script>{SORT}</script>
</body>
</html>
"""


def title_part(page: str) -> str:
    """The title of a page that `html_page` wrote, as HTML."""
    return page.partition("<title>")[2].partition("</title>")[0]


def table_part(page: str) -> str:
    """What `html_table` gave of a page that `html_page` wrote."""
    return page.split(TABLE_MARK)[1]
