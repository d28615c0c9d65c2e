"""Figures of compared methods: what their learning rates do, and what their parameters buy."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from loratory.errors import InputError
from loratory.reporting.figures import PANEL, SHARE_COLOURS, UNDEFINED, svg_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES, MARKERS = ("-", "--", ":", "-."), "osv^D"
REFERENCE = "#d55e00"  # the method that the others are compared with
HIGH = 3.6  # inches of a panel that holds many methods


def draw_rates(runs: Mapping[str, Path | str], against: str, out: Path | str, banner: str = "") -> None:
    """Validation loss at the end of training over the learning rate, on the seed that chooses: a panel a domain.

    Args:
        runs: {`adapter@domain`: its `runs.parquet`}.
        against: the adapter that is drawn in a colour of its own.
    """
    found = {name: final_losses(path) for name, path in runs.items()}
    names = list(dict.fromkeys(name.partition("@")[0] for name in runs))
    looks = {name: line_style(place, len(names), name == against) for place, name in enumerate(names)}
    with domain_panels(found, out, banner) as (figure, axes):
        for domain, axis in axes.items():
            for name in names:
                points = found.get(f"{name}@{domain}")
                axis.plot(*zip(*points), label=name, **looks[name]) if points else None
            axis.set(title=domain, xscale="log", yscale="log")
        figure.supxlabel("highest learning rate")
        figure.supylabel("validation loss (nats per target token)")
        handles = {label: h for axis in axes.values() for h, label in zip(*axis.get_legend_handles_labels())}
        figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize=7)


def final_losses(path: Path | str) -> list[tuple[float, float]]:
    """(learning rate, lowest validation loss) of the first seed's runs; one that is not finite is left out."""
    rows = [row for row in pq.read_table(path).to_pylist() if row["valid_loss"] is not None]
    first = min(row["seed"] for row in rows)
    found: dict[float, float] = {}
    for row in rows:
        if row["seed"] == first and isfinite(row["valid_loss"]):
            rate, loss = row["learning_rate"], row["valid_loss"]
            found[rate] = min(loss, found.get(rate, loss))
    return sorted(found.items())


def line_style(place: int, count: int, is_reference: bool) -> dict:
    """How one of many lines is told from the others without relying on colour alone."""
    if is_reference:
        return {"color": REFERENCE, "lw": 2, "marker": "o", "ms": 4, "zorder": 3}
    colour = SHARE_COLOURS(0.9 * place / max(1, count - 1))
    style = {"ls": LINES[place % len(LINES)], "marker": MARKERS[place % len(MARKERS)]}
    return {"color": colour, "lw": 0.9, "ms": 3, **style}


def draw_pareto(table: Path | str, against: str, out: Path | str, banner: str = "") -> None:
    """Gain over the base against trainable parameters, with intervals: a panel a domain, or why it has none.

    The line joins methods that no other surpasses with fewer parameters, by their means alone; they are named.

    Args:
        table: tab-separated file of `methods.tables`.

    Raises:
        InputError: the base alone was not scored, so there is no gain.
    """
    with open(table, newline="") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if is_drawn(row)]
    if not any(row["gain"] or not row["value"] for row in rows):
        raise InputError(table, "no gain over the base to draw", expected="a base that answers without an adapter")
    found = {f"{row['adapter']}@{row['domain']}": row for row in rows}
    with domain_panels(found, out, banner) as (figure, axes):
        for domain, axis in axes.items():
            own = [row for row in rows if row["domain"] == domain]
            if gained := [row for row in own if row["gain"]]:
                draw_front(axis, gained, against)
            else:
                reason = "no gain over the base" if own[0]["value"] else own[0]["status"]
                axis.text(0.5, 0.5, reason, transform=axis.transAxes, ha="center")
            axis.axhline(0, color="0.6", lw=0.8, ls="--")
            unit = f" ({own[0]['unit']})" if own[0]["unit"] else ""
            axis.set(title=domain, xscale="log", ylabel=f"gain in {own[0]['metric']}{unit}")
        figure.supxlabel("trainable parameters")


def draw_ranks(adapters: Mapping[str, Sequence[Path | str]], out: Path | str, banner: str = "") -> None:
    """The rank that each adapted matrix was left with, mean over seeds: a panel for each adapter.

    Rows are blocks of the model, columns the matrices of a block; grey: not adapted, or left with nothing.

    Args:
        adapters: {`adapter@domain`: its folders, one for each seed}.
    """
    found = {name: mean_ranks(folders) for name, folders in adapters.items()}
    layers = list(dict.fromkeys(layer for ranks in found.values() for layer in sorted(ranks, key=natural_order)))
    blocks, matrices = (list(dict.fromkeys(part)) for part in zip(*map(block_and_matrix, layers)))
    blocks.sort(key=natural_order)
    matrices.sort()
    highest = max(max(ranks.values(), default=1.0) for ranks in found.values())
    wide = min(2, len(found))
    size = (wide * (1.6 + 0.42 * len(matrices)) + 1.2, -(-len(found) // wide) * (1.7 + 0.22 * len(blocks)))
    with svg_figure(out, size, banner) as figure:
        axes = figure.subplots(-(-len(found) // wide), wide, squeeze=False, sharex=True, sharey=True).flatten()
        for axis, (name, ranks) in zip(axes, found.items()):
            grid = np.full((len(blocks), len(matrices)), np.nan)
            for layer, rank in ranks.items():
                block, matrix = block_and_matrix(layer)
                grid[blocks.index(block), matrices.index(matrix)] = rank or np.nan
            colours = SHARE_COLOURS.with_extremes(bad=UNDEFINED)
            image = axis.imshow(grid, cmap=colours, vmin=0, vmax=highest, aspect="auto")
            axis.set(title=name)
            axis.set_xticks(range(len(matrices)), matrices, rotation=90)
            axis.set_yticks(range(len(blocks)), blocks)
            axis.spines[:].set_visible(False)
        for axis in axes[len(found) :]:
            axis.set_visible(False)
        figure.colorbar(image, ax=axes.tolist(), label="learned rank, mean over seeds")


def mean_ranks(folders: Sequence[Path | str]) -> dict[str, float]:
    """{layer: mean over folders of how many components of its change are not zero}."""
    totals: dict[str, float] = {}
    stored = [path for folder in folders if (path := Path(folder, "adapter_model.safetensors")).is_file()]
    for path in stored:  # without one, no layer was left with anything
        tensors = load_file(path)
        for key, a in tensors.items():
            layer, is_factor, _ = key.removeprefix("base_model.model.").partition(".lora_A.weight")
            if is_factor:
                b = tensors[key.replace(".lora_A.", ".lora_B.")]
                live = np.any(a.reshape(len(a), -1), 1) & np.any(b.reshape(len(b), -1), 0)
                totals[layer] = totals.get(layer, 0.0) + float(live.sum()) / len(folders)
    return totals


def block_and_matrix(layer: str) -> tuple[str, str]:
    """`encoder 3` and `self_attn.q_proj` of `model.encoder.layers.3.self_attn.q_proj`; else the layer's own parts."""
    parts = layer.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    if not numbers:
        return ".".join(parts[:-1]) or layer, parts[-1]
    at = numbers[0]
    stem = [part for part in parts[:at] if part not in ("model", "layers", "transformer", "layer", "h")]
    return " ".join([*stem, parts[at]]), ".".join(parts[at + 1 :])


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in names by their value, and an encoder before a decoder."""
    parts = name.replace(".", " ").split()
    first = {"encoder": -2, "decoder": -1}
    return [(int(part), "") if part.isdecimal() else (first.get(part, 0), part) for part in parts]


def is_drawn(row: Mapping[str, str]) -> bool:
    """Whether a row of the table is of a method, by the primary metric."""
    return bool(row["num_trainable_params"]) and row["primary"] == "True"


def draw_front(axis: Axes, rows: Sequence[Mapping], against: str) -> None:
    points = {row["adapter"]: (float(row["num_trainable_params"]), float(row["gain"])) for row in rows}
    best = pareto_front(points)
    for row in rows:
        name = row["adapter"]
        x, y = points[name]
        colour = REFERENCE if name == against else SHARE_COLOURS(0.1 if name in best else 0.6)
        whiskers = [[y - float(row["gain_low"])], [float(row["gain_high"]) - y]] if row["gain_low"] else None
        axis.errorbar(x, y, yerr=whiskers, color=colour, marker="o", ms=4, lw=0.8)
        if name in best or name == against:
            axis.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour)
    axis.plot(*zip(*(points[name] for name in best)), color=SHARE_COLOURS(0.1), lw=0.8, drawstyle="steps-post")


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other one reaches with as few parameters, the fewest parameters first."""
    best, highest = [], float("-inf")
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > highest:
            best.append(name)
            highest = points[name][1]
    return best


@contextmanager
def domain_panels(names: Iterable[str], out: Path | str, banner: str) -> Iterator[tuple[Figure, dict[str, Axes]]]:
    """Yields a figure and {domain: its panel} for the domains of `adapter@domain` names."""
    domains = list(dict.fromkeys(name.partition("@")[2] for name in names))
    wide, high = min(2, len(domains)), -(-len(domains) // 2)
    with svg_figure(out, (1.3 * PANEL[0] * wide + 1.4, HIGH * high), banner) as figure:
        axes = figure.subplots(high, wide, squeeze=False).flatten()
        for axis in axes[len(domains) :]:
            axis.set_visible(False)
        yield figure, dict(zip(domains, axes))
