"""Mixtures of the same experts → one table: what each recovers of the oracle's gain, how it routes, and what it costs.

Rows keep the config's order: no rank is printed, as intervals and the marks ▲ ▼ say what can be told apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loratory.data.files import read_json
from loratory.evaluation.summaries import system_facts
from loratory.reporting import formats
from loratory.reporting.formats import Layout
from loratory.reporting.methods import difference_cell, draws_note, marks_note, rate_cell, scaled_cell
from loratory.reporting.tables import (
    ABSENT,
    BASE,
    BY_LOSS,
    CONTROL,
    CONTROLS,
    best_single_note,
    column_heading,
    column_notes,
    control_mark,
    control_notes,
    control_systems,
    loss_headings,
    loss_metrics,
    over_text,
    recovery_notes,
    share_text,
    size_text,
    uneven_metrics,
    value_cell,
    version_notes,
)

DOMAIN_MARK = "†"
SHARED = (
    "read and written of the base and of adapters: in batches that up to {systems} systems shared, of whose seconds "
    "each has an equal part; mixtures and their controls answered alone."
)
NOTES = (
    "Recovery: (system − base) / (oracle − base) on test, the oracle being each domain's own adapter; its interval is "
    f"of that ratio, draw by draw. {ABSENT} where the interval of the oracle's gain is not above 0; the mean is over "
    "the other domains, and says so.",
    f"{DOMAIN_MARK} is told the domain of its input, which no other system knows. First pass: the base is run without "
    "experts before they are weighed.",
    "shuffled: the same gate, each weight handed to the next expert; other_user: each record with the past of another "
    "user; mean_user: for all records the mean weights of the users of `valid`.",
    "The best single expert was chosen once; intervals do not cover that choice.",
    "top-1: share of tokens of test records whose heaviest expert, by the mean over layers, is the domain's own; "
    "entropy: of the experts' shares of a token and layer (1: uniform). Means over all domains, where several experts "
    "are weighed in each; top-1 where training told them the domains: of any other gate it is no measure.",
    "learning rate: chosen by the loss on `valid` with the first seed, the mean over domains; at the edge of its grid "
    "a better one may lie beyond.",
    "read: positions a second where a system scores or chooses; written: tokens a second where it writes, reading its "
    "prompts included. Batches of records, on the machine of this run, whose other jobs are part of what is measured.",
    "trained: numbers that an optimizer moved for this mixture; experts that it was given were trained before. "
    "stored: numbers of its gate and its experts. memory: peak on the GPU, the base included; not known on a CPU.",
)


def write_mixer_table(
    contrast: Path | str,
    routes: Sequence[Path | str],
    costs: Sequence[Path | str],
    runs: Sequence[tuple[str, Path | str]],
    out: Path | str,
    *,
    about: str = "",
    banner: str = "",
) -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html`.

    Args:
        contrast: JSON file of `evaluation.recovery`.
        routes, costs: files `seed{n}.routing.json` and `seed{n}.costs.json` of `evaluation.predict`, of all
            domains and seeds, in the same order.
        runs: (mixture, its `mixture.json`) pairs of all seeds; lines keep their order.
        about: what the base is, in a sentence. banner: a warning above the table.
    """
    report = read_json(contrast)
    answered = [system_records(read_json(spent), read_json(routed)) for spent, routed in zip(costs, routes)]
    trained = [(name, read_json(path)) for name, path in runs]
    formats.write_table(mixer_layout(report, answered, trained, about, banner), out)


def system_records(costs: Mapping, routing: Mapping) -> dict[str, dict]:
    """{system: its cost and, of a mixture, its routing}, of one domain and seed."""
    return {system: cost | routing.get(system, {}) for system, cost in costs.items()}


def mixer_layout(
    report: Mapping, answered: Sequence[Mapping], runs: Sequence[tuple[str, Mapping]], about: str, banner: str
) -> Layout:
    """A line for the base, the best baseline and expert, each mixture and its gate's controls; two columns each."""
    rows = {(row["domain"], row["system"]): row for row in report["rows"] if row["primary"]}
    by_loss = {(row["domain"], row["system"]): row for row in report["rows"] if not row["primary"]}
    losses = loss_metrics(report["rows"])
    heads = {domain: rows[domain, BASE] for domain in report["domains"]}
    best = report["best_single"]
    mixtures = list(dict.fromkeys(name for name, _ in runs))
    controls = report["controls"]
    first = [BASE, *([CONTROL] if any(controls.values()) else []), *([best] if best else [])]
    systems = [*first, *row_order(mixtures, {system for _, system in rows})]
    means, loss_means = ({row["system"]: row for row in report[name]} for name in ("means", "loss_means"))
    uneven = {d for d in heads if uneven_metrics(row for (domain, _), row in rows.items() if domain == d)}
    known = {name: system_facts(name, answered, [run for mixture, run in runs if mixture == name]) for name in systems}
    header = ["system"]
    for domain, row in heads.items():
        header += [f"{domain}: recovery (%)", f"{domain}: better than {report['against']} by, {column_heading(row)}"]
    header += ["mean recovery (%)", *loss_headings(losses), "top-1 (%)", "entropy"]
    header += ["read (tokens/s)", "written (tokens/s)"]
    header += ["memory, answering (MB)", "memory, training (MB)", "learning rate", "trained"]
    header += ["stored", "first pass"]
    lines, shown, others = [], [], []
    for name in systems:
        own = control_systems(controls) if name == CONTROL else dict.fromkeys(heads, name)
        found = [rows.get((domain, own[domain])) for domain in heads]
        cells = [text for domain, row in zip(heads, found) for text in domain_cells(row, domain in uneven)]
        cells += [recovery_cell(means.get(name)), *(recovery_cell(by_loss.get((d, own[d]))) for d in losses)]
        cells += [recovery_cell(loss_means.get(name))] if losses else []
        marked = f"{name} {DOMAIN_MARK}" if known[name]["needs_domain"] else name
        label = f"best single ({name})" if name == best else marked
        lines.append([label, *cells, *fact_cells(known[name])])
        shown += [row | mean_columns(means.get(name)) | known[name] for row in found if row]
        beside = [by_loss[d, own[d]] for d in losses if (d, own[d]) in by_loss]
        others += [row | mean_columns(loss_means.get(name)) | known[name] for row in beside]
    learnt = {d: [rows[d, name] for name in (best, *mixtures) if (d, name) in rows] for d in heads}
    foot = column_notes({d: (head, [row for row in shown if row["domain"] == d]) for d, head in heads.items()})
    foot += [draws_note(report), marks_note(report["against"], [{"rows": shown}]), best_single_note(report)]
    foot += [*recovery_notes(report["rows"]), *([BY_LOSS] if losses else [])]
    foot += [*control_notes(controls, learnt), *NOTES, *version_notes(report.get("metrics_versions", {}))]
    most = max((cost.get("systems", 1) for each in answered for cost in each.values()), default=1)
    foot += [SHARED.format(systems=most)] if most > 1 else []
    foot += [f"Base: {about}"] if about else []
    records = [{"base": report["base"], **row} for row in (*shown, *others)]
    return Layout(f"Mixers on {report['base']}", banner, header, lines, foot, records)


def mean_columns(row: Mapping | None) -> dict:
    parts = ("recovery", "recovery_low", "recovery_high", "over", "domains")
    return {f"mean_{part}": row and row[part] for part in parts}


def row_order(mixtures: Sequence[str], asked: set[str]) -> list[str]:
    lines = [name for mixture in mixtures for name in (mixture, *(f"{mixture}:{control}" for control in CONTROLS))]
    return [name for name in lines if name in asked]


def fact_cells(known: Mapping) -> list[str]:
    """The cells of routing and costs."""
    entropy = ABSENT if known["entropy"] is None else f"{known['entropy']:.2f}"
    numbers = [ABSENT if known[name] is None else f"{round(known[name]):,}" for name in ("trainable", "stored")]
    speeds = [scaled_cell(known[name], 1) for name in ("read_per_second", "written_per_second")]
    memory = [scaled_cell(known[name], 1e6) for name in ("memory", "training_memory")]
    first_pass = "yes" if known["first_pass"] else ABSENT
    return [share_text(known["top1"]), entropy, *speeds, *memory, rate_cell(known), *numbers, first_pass]


def domain_cells(row: Mapping | None, sized: bool) -> tuple[str, str]:
    """The cells of one domain: what is recovered, or why there is no value, and the difference."""
    if row is None or row["value"] is None:
        return value_cell(row, sized=sized), ABSENT
    size = f" {size_text(row['recovery_n'], row['recovery_groups'])}" if sized else ""
    return recovery_cell(row) + control_mark(row) + size, difference_cell(row)


def recovery_cell(row: Mapping | None) -> str:
    """`recovery [low, high]` in percent; of a mean, over how many domains if not all."""
    if row is None or row["recovery"] is None:
        return ABSENT
    value, low, high = (share_text(row[part]) for part in ("recovery", "recovery_low", "recovery_high"))
    return " ".join(filter(None, [f"{value} [{low}, {high}]", over_text(row) if "over" in row else ""]))
