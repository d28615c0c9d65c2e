"""Figures as SVG whose bytes depend on the data alone. Colours can be distinguished with any colour vision."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from loratory.data.files import atomic_write, read_json
from loratory.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "loratory",  # else element ids are random
    "svg.fonttype": "none",  # text stays text: searchable, and no glyph depends on a font version
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
SHARE_COLOURS = matplotlib.colormaps["cividis"]
CHANGE_COLOURS = matplotlib.colormaps["PuOr"]  # orange: worse than the base, purple: better
UNDEFINED = "0.85"
PANEL = (3.4, 2.6)  # inches
PANEL_COLUMNS = 3  # panels side by side


def draw_routing(weights: Path | str, out: Path | str, banner: str = "") -> None:
    """Which expert each domain's tokens are sent to.

    Args:
        weights: JSON file with `experts`, `domains`, `weights` (mean gate weight, a row for each domain, a column for
            each expert), `entropy` and `top1` (for each domain: entropy / log(number of experts), and the share of
            tokens whose heaviest expert is the domain's own; None where experts are not those of domains). `top1` is
            drawn where the gate `learns_labels`.
    """
    found = read_json(weights)
    shares = found["top1"] if found["learns_labels"] else {}
    top = {domain: "" if share is None else f", top-1 {share:.0%}" for domain, share in shares.items()}
    names = [f"{d}\nentropy {found['entropy'][d]:.2f}{top.get(d, '')}" for d in found["domains"]]
    shown = [[f"{weight:.2f}" for weight in row] for row in found["weights"]]
    with svg_figure(out, (2.6 + 0.9 * len(found["experts"]), 1.5 + 0.55 * len(names)), banner) as figure:
        draw_heatmap(
            figure, found["weights"], shown, names, found["experts"], SHARE_COLOURS, (0, 1), "mean gate weight (share)"
        )
        figure.axes[0].set(xlabel="expert", ylabel="domain of the input")


def draw_layers(weights: Path | str, out: Path | str, banner: str = "") -> None:
    """Mean weight of each expert in each adapted layer: a panel for each domain of the input.

    Args:
        weights: JSON file of `evaluation.routing`.
    """
    found = read_json(weights)
    rows, domains = short_names(found["layers"]), found["domains"]
    size = (2.4 + (0.5 + 0.3 * len(found["experts"])) * len(domains), 1.5 + 0.14 * max(8, len(rows)))
    with svg_figure(out, size, banner) as figure:
        axes = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
        for axis, domain in zip(axes, domains):
            image = axis.imshow(found["modules"][domain], cmap=SHARE_COLOURS, vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(found["experts"])), found["experts"], rotation=90)
            axis.set(title=domain)
            axis.spines[:].set_visible(False)
        axes[0].set_yticks(range(len(rows)), rows, fontsize=6)
        figure.supxlabel("expert")
        figure.supylabel("adapted layer")
        figure.colorbar(image, ax=axes.tolist(), label="mean gate weight")


def short_names(names: Sequence[str]) -> list[str]:
    """Dotted names without the parts that all of them start with."""
    parts = [name.split(".") for name in names]
    same = 0
    while len(names) > 1 and all(len(part) > same + 1 and part[same] == parts[0][same] for part in parts):
        same += 1
    return [".".join(part[same:]) for part in parts]


def draw_token_weights(routes: Path | str, mixture: str, out: Path | str, banner: str = "") -> None:
    """Weight of each expert at each token, mean over layers: a panel for each input of several domains.

    Args:
        routes: JSON file of `evaluation.tokens`.
    """
    found = read_json(routes)[mixture]
    longest = max(len(routed["tokens"]) for routed in found.values())
    high = 1 + 0.22 * len(next(iter(found.values()))["experts"])
    with svg_figure(out, (2.5 + 0.03 * longest, 0.6 + high * len(found)), banner) as figure:
        axes = figure.subplots(len(found), 1, squeeze=False)[:, 0]
        for axis, (name, routed) in zip(axes, found.items()):
            weights = [*zip(*routed["weights"])]
            image = axis.imshow(weights, cmap=SHARE_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axis.set_yticks(range(len(routed["experts"])), routed["experts"])
            domains = routed["domains"]
            starts = [at for at, domain in enumerate(domains) if at == 0 or domain != domains[at - 1]]
            axis.set_xticks(starts, [f"{domains[at]}, from {at}" for at in starts], ha="left")
            for at in starts[1:]:
                axis.axvline(at - 0.5, color="white", lw=1.5)
            axis.set(title=name)
            axis.spines[:].set_visible(False)
        figure.supxlabel("token of the input")
        figure.supylabel("expert")
        figure.colorbar(image, ax=axes.tolist(), label="weight, mean over layers")


def draw_transfer(summary: Path | str, out: Path | str, banner: str = "") -> None:
    """How much of the oracle's gain each adapter recovers on each domain; cells without one are grey.

    Args:
        summary: tab-separated file of `tables.summary`.

    Raises:
        InputError: the summary holds no adapter.
    """
    with open(summary, newline="") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["label"] == row["system"]]
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    adapters = list(dict.fromkeys(row["system"] for row in rows if row["kind"] == "adapter"))
    if not adapters:
        raise InputError(summary, "no adapter to draw", expected="rows of kind `adapter`")
    shares = {(row["system"], row["domain"]): float(row["recovery"] or "nan") for row in rows}
    grid = [[shares.get((adapter, domain), float("nan")) for domain in domains] for adapter in adapters]
    shown = [["–" if isnan(value) else f"{value:.0%}".replace("-", "−") for value in row] for row in grid]
    with svg_figure(out, (3 + 0.9 * len(domains), 1.6 + 0.4 * len(adapters)), banner) as figure:
        percent = [[100 * value for value in row] for row in grid]
        draw_heatmap(figure, percent, shown, adapters, domains, CHANGE_COLOURS, (-100, 100), "recovery (%)")
        figure.axes[0].set(xlabel="domain of the test records", ylabel="adapter @ domain it learnt")


def draw_curves(runs: Mapping[str, Path | str], out: Path | str, banner: str = "") -> None:
    """Training loss (thin) and validation loss (dots) by step: a panel for each of `runs`, with all rates and seeds.

    Args:
        runs: {name: its `runs.parquet` with `run`, `seed`, `learning_rate`, `step`, `loss`, `valid_loss`}, as of
            `training.grid`.

    Raises:
        InputError: there is nothing to draw.
    """
    tables = {name: pq.read_table(path).to_pylist() for name, path in runs.items()}
    rates = sorted({row["learning_rate"] for rows in tables.values() for row in rows})
    if not rates:
        raise InputError(next(iter(runs.values()), "runs"), "no run to draw", expected="rows with a step and a loss")
    colours = {rate: SHARE_COLOURS(0.9 * index / max(1, len(rates) - 1)) for index, rate in enumerate(rates)}
    wide = min(PANEL_COLUMNS, len(tables))
    high = -(-len(tables) // wide)
    with svg_figure(out, (PANEL[0] * wide + 1.2, PANEL[1] * high), banner) as figure:
        axes = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
        for axis, (name, rows) in zip(axes.flat, tables.items()):
            for run in dict.fromkeys(row["run"] for row in rows):
                draw_run(axis, sorted((r for r in rows if r["run"] == run), key=lambda r: r["step"]), colours)
            axis.set(title=name)
            axis.tick_params(labelbottom=True, labelleft=True)
        for axis in axes.flat[len(tables) :]:
            axis.set_visible(False)
        figure.supxlabel("optimiser step")
        figure.supylabel("loss (nats per target token)")
        keys = [Line2D([], [], color=colours[rate], label=f"{rate:g}") for rate in rates]
        keys += [
            Line2D([], [], color="0.3", lw=0.8, label="train"),
            Line2D([], [], color="0.3", ls="", marker="o", ms=3, label="validation"),
        ]
        figure.legend(handles=keys, title="learning rate", loc="outside right upper", frameon=False)


def draw_calibration(metrics: Path | str, out: Path | str, banner: str = "") -> None:
    """Mean true lDDT of the residues in each bin of pLDDT, with the diagonal, above the number of residues.

    A bin whose residues are of too few chains has a bar and no point.

    Args:
        metrics: JSON file of `evaluation.assess`.
    """
    bins = read_json(metrics)["bins"]
    centres = [(each["low"] + each["high"]) / 2 for each in bins]
    with svg_figure(out, (3.8, 4.4), banner) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.axline((0, 0), (100, 100), color="0.5", lw=0.8, ls="--")
        points = [(each["plddt"], each["lddt"]) for each in bins if each["lddt"] is not None]
        above.plot(*zip(*points), color=SHARE_COLOURS(0.15), marker="o", ms=4, lw=1) if points else None
        above.set(xlim=(0, 100), ylim=(0, 100), ylabel="mean true lDDT-Cα (0–100)")
        widths = [0.9 * (each["high"] - each["low"]) for each in bins]
        bars = below.bar(centres, [each["residues"] for each in bins], widths, color=SHARE_COLOURS(0.5))
        below.bar_label(bars, fontsize=6)
        below.set(xlabel="mean pLDDT of the bin (0–100)", ylabel="residues")
        below.margins(y=0.2)


def draw_run(axis: Axes, rows: Sequence[Mapping], colours: Mapping) -> None:
    colour = colours[rows[0]["learning_rate"]]
    looks: dict[str, dict[str, Any]] = {
        "loss": {"lw": 0.8, "alpha": 0.7},
        "valid_loss": {"ls": "", "marker": "o", "ms": 3},
    }
    for name, look in looks.items():
        points = [(row["step"], row[name]) for row in rows if row[name] is not None]
        axis.plot(*zip(*points), color=colour, **look) if points else None


def draw_heatmap(
    figure: Figure,
    values: Sequence[Sequence[float]],
    shown: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    colours: Colormap,
    limits: tuple[float, float],
    label: str,
) -> None:
    """A matrix of coloured cells with their values written on them; NaN is grey."""
    axis = figure.subplots()
    image = axis.imshow(
        values, cmap=colours.with_extremes(bad=UNDEFINED), vmin=limits[0], vmax=limits[1], aspect="auto"
    )
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.spines[:].set_visible(False)
    for i, row in enumerate(shown):
        for j, text in enumerate(row):
            red, green, blue, _ = image.to_rgba(np.asarray(values[i][j]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axis.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
    figure.colorbar(image, label=label)


@contextmanager
def svg_figure(out: Path | str, size: tuple[float, float], banner: str) -> Iterator[Figure]:
    """Yields a figure; writes it as SVG, under its banner, when the block ends."""
    with matplotlib.rc_context(STYLE), atomic_write(out) as aside:
        figure = Figure(figsize=size)
        yield figure
        if banner:
            figure.suptitle(banner, fontsize=8, color="#a04000")
        figure.savefig(aside, format="svg", metadata={"Date": None})
