"""Metrics → tables for reading: one for each domain and base, and a summary of a mixture over its domains.

No cell is emphasised as the winner: whether two systems differ is what intervals and the marks ▲ ▼ say.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from loratory.data.files import read_json
from loratory.errors import InputError
from loratory.evaluation.summaries import best_over_control, is_edge
from loratory.reporting import formats
from loratory.reporting.formats import Layout

PRINT_UNITS = {"ratio": (100, "%")}  # unit: factor and unit in print
DECIMALS = {"%": 1, "0–100": 1, "Å": 2, "utterances": 0}  # of a printed unit; else 3
ARROWS = {"up": "↑", "down": "↓"}
GENERAL = "general"
KINDS = ("base", "baseline", "adapter", "cut", "control", "mixture")
CONTROLS = ("uniform", "oracle", "shuffled", "other_user", "mean_user")
BASE = "base"
ABSENT = "–"
UNDEFINED = "undefined"  # the status of a metric whose value does not exist, such as that of an empty age group
FEW_SEEDS = 3  # with fewer, a method cannot be told from its seed
MARKS = (
    "▲ better, ▼ worse than the base: the 95 % interval of the paired difference excludes 0; "
    "not corrected for the number of comparisons."
)
BEATS = "*"
CONTROL = "best control without a language model"
BETTER = f"{BEATS} better than that control: the 95 % interval of the paired difference is above 0."
STRONGEST = "Held against it in each domain: the adapter or mixture of this table that is best on test."
FORGETTING = "the same on test records of the general population: what adaptation cost there"
RECOVERY = (
    "Recovery: (system − base) / (oracle − base) on test, the oracle being each domain's own adapter; "
    f"{ABSENT} where the interval of the oracle's gain, over groups of records and over seeds, is not above 0. A mean "
    "over some of the domains says over how many."
)
BY_LOSS = "Recovery by loss: by what learning rates are chosen by, here computed on test records."


def write_domain_table(
    metrics: Sequence, out: Path | str, *, audits: Sequence = (), about: str = "", banner: str = ""
) -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html`: every system of one domain and base, on test and on samples.

    The tab-separated file holds all digits, and the validation split too.

    Args:
        metrics: JSON files of `evaluation.score`: of the domain and, if it was scored, of its general population.
        audits: `audit.json` of the same datasets, whose counts are printed.
        about: what the base is, in a sentence.
        banner: a warning above the table.
    """
    foot = [f"Base: {about}"] if about else []
    foot += [label + audit_note(read_json(path)) for label, path in zip(("", f"{GENERAL}: "), audits)]
    formats.write_table(domain_layout(*map(read_json, metrics), foot=foot, banner=banner), out)


def write_summary(
    metrics: Sequence[Path | str],
    out: Path | str,
    *,
    mixture: str,
    experts: Sequence[str],
    recovery: Path | str,
    routing: Path | str,
    run: Path | str,
    about: str = "",
    banner: str = "",
) -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html`: a mixture, its controls and its experts on all its domains.

    Args:
        metrics: JSON files of `evaluation.score`, one for each domain, all of one base; columns keep their order.
        experts: the mixture's experts as systems, such as `lora@protein`; lines keep their order.
        recovery: JSON file of `evaluation.recovery.measure_recovery`. routing: JSON file of `evaluation.routing`.
        run: the mixture's `mixture.json` of the first seed, for the foot.
        about, banner: as of `write_domain_table`.

    Raises:
        InputError: the files are of several bases, or a file has no primary metric on the test split.
    """
    reports = [read_json(path) for path in metrics]
    for path, report in zip(metrics, reports):
        if report["base"] != reports[0]["base"]:
            raise InputError(path, "systems of another base cannot be compared", report["base"], reports[0]["base"])
        if not primary_rows(report, "test"):
            raise InputError(path, "no primary metric on the test split", expected="one row for each system")
    trained = read_json(run)
    foot = [routing_note(read_json(routing)), mixer_note(trained), *rate_notes(trained)]
    foot += [f"Base: {about}"] if about else []
    formats.write_table(summary_layout(reports, read_json(recovery), mixture, experts, foot, banner), out)


def domain_layout(
    report: Mapping,
    general: Mapping | None = None,
    *,
    foot: Sequence[str] = (),
    banner: str = "",
) -> Layout:
    domain, base = report["domain"], report["base"]
    tested = [*forgetting_rows(general), *(row for row in report["rows"] if row["split"] != "valid")]
    defined = {row["metric"] for row in tested if row["status"] != UNDEFINED}
    shown = [row for row in sorted(tested, key=column_key) if row["metric"] in defined]
    cells = {(row["system"], row["metric"]): row for row in shown}
    metrics = {row["metric"]: row for row in shown}
    kinds = {(row["system"], row["kind"]) for row in shown}
    systems = sorted(kinds, key=lambda item: system_key(item[0], item[1], domain))
    uneven = uneven_metrics(shown)
    rows = [
        [system, *(value_cell(cells.get((system, name)), sized=name in uneven) for name in metrics)]
        for system, _ in systems
    ]
    notes = [*size_notes(shown), seeds_note(report), *metric_notes(metrics.values(), shown), *foot]
    notes += version_notes({domain: report.get("metrics_version", 1)})
    notes += [*unseen_notes(report.get("unseen", {})), *too_long_notes(report.get("too_long", 0))]
    scored = {"data": report} | ({GENERAL: general} if general else {})
    learnt = [row for row in shown if row["primary"] and row["kind"] in ("adapter", "mixture")]
    notes += control_notes({domain: report["control"]}, {domain: learnt})
    records = [{"corpus": c, "domain": domain, "base": base, **row} for c, of in scored.items() for row in of["rows"]]
    header = ["system", *map(column_heading, metrics.values())]
    notes.append(MARKS if (BASE, BASE) in systems else "The base alone was not scored, so gains are undefined.")
    main = 1 + sum(row["primary"] or row["loss"] or row["split"].startswith(GENERAL) for row in metrics.values())
    return Layout(f"{domain} on {base}", banner, header, rows, notes, records, main)


def forgetting_rows(general: Mapping | None) -> list[dict]:
    """Rows of the primary metric on the general population, named and noted for a column beside the domain's own."""
    rows = primary_rows(general, "test").values() if general else ()
    label = {"split": f"{GENERAL} test", "primary": False, "note": FORGETTING}
    return [{**row, "metric": f"{GENERAL}: {row['metric']}", **label} for row in rows]


def summary_layout(
    reports: Sequence[Mapping],
    recovered: Mapping,
    mixture: str,
    experts: Sequence[str],
    about: Sequence[str],
    banner: str,
) -> Layout:
    """Args:
    reports: of `evaluation.score`. recovered: of `evaluation.recovery`. about: sentences for the foot.
    """
    test = {report["domain"]: primary_rows(report, "test") for report in reports}
    shares = {(row["domain"], row["system"]): row for row in recovered["rows"] if row["primary"]}
    by_loss = {(row["domain"], row["system"]): row for row in recovered["rows"] if not row["primary"]}
    losses = loss_metrics(recovered["rows"])
    means, loss_means = ({row["system"]: row for row in recovered[name]} for name in ("means", "loss_means"))
    uneven = {domain for domain, of in test.items() if uneven_metrics(of.values())}
    best, controls = recovered["best_single"], {report["domain"]: report["control"] for report in reports}
    first, *others = summary_order(test, mixture, experts, best)
    rows, records = [], []
    for label, system in [first, *([(CONTROL, None)] if any(controls.values()) else []), *others]:
        systems = control_systems(controls) if label == CONTROL else dict.fromkeys(test, system)
        found = {domain: of.get(systems[domain] or "") for domain, of in test.items()}
        mean, loss_mean = means.get(system), loss_means.get(system)
        line = [label, *(value_cell(row, sized=domain in uneven) for domain, row in found.items())]
        line += [share_cell(shares.get((d, systems[d])), d in uneven) for d in test] + [mean_cell(mean)]
        line += [share_cell(by_loss.get((d, systems[d])), d in uneven) for d in losses]
        rows.append(line + ([mean_cell(loss_mean)] if losses else []))
        for domain, row in found.items():
            own, other = (of.get((domain, systems[domain])) for of in (shares, by_loss))
            extra = recovery_facts(own, mean) | {"loss_metric": losses.get(domain)}
            extra |= recovery_facts(other, loss_mean, "loss_")
            records += [{"mixture": mixture, "label": label, "domain": domain, **row, **extra}] if row else []
    heads = {domain: next(iter(of.values())) for domain, of in test.items()}
    header = ["system", *(f"{domain}: {column_heading(row)}" for domain, row in heads.items())]
    header += [*(f"{domain}: recovery (%)" for domain in test), "mean recovery (%)", *loss_headings(losses)]
    foot = column_notes({domain: (heads[domain], of.values()) for domain, of in test.items()})
    learnt = {domain: [of[name] for name in (*experts, mixture) if name in of] for domain, of in test.items()}
    foot += [*dict.fromkeys(map(seeds_note, reports)), RECOVERY, *([BY_LOSS] if losses else [])]
    foot += [*recovery_notes(recovered["rows"]), best_single_note(recovered), MARKS]
    foot += [*control_notes(controls, learnt), *about]
    foot += version_notes({report["domain"]: report.get("metrics_version", 1) for report in reports})
    return Layout(f"{mixture} on {reports[0]['base']}", banner, header, rows, foot, records, 1 + len(test))


def primary_rows(report: Mapping, split: str) -> dict[str, Mapping]:
    """The row of the domain's primary metric for each system."""
    return {row["system"]: row for row in report["rows"] if row["primary"] and row["split"] == split}


def column_key(row: Mapping) -> tuple:
    """The primary metric first (on the domain, then in general), then what learning rates are chosen by, then others
    of test records, then of samples."""
    return not row["primary"], not row["split"].startswith(GENERAL), not row["loss"], row["split"] != "test"


def system_key(system: str, kind: str, domain: str) -> tuple:
    """Base, baselines, adapters (of this domain, then of others), controls, mixtures; then by name."""
    return KINDS.index(kind), kind == "adapter" and not system.endswith(f"@{domain}"), system


def summary_order(test: Mapping, mixture: str, experts: Sequence[str], best: str | None) -> list[tuple]:
    """(label, system) of each line: base, experts, the best of them, controls, mixture."""
    kinds = {system: row["kind"] for rows in test.values() for system, row in rows.items()}
    ranks = {f"{mixture}:{control}": rank for rank, control in enumerate(CONTROLS)}
    controls = [s for s, kind in kinds.items() if kind == "control" and (s in ranks or ":" not in s)]
    controls.sort(key=lambda system: (ranks.get(system, len(ranks)), system))
    label = f"best single ({best})" if best else "best single"
    return [(BASE, BASE), *zip(experts, experts), (label, best), *zip(controls, controls), (mixture, mixture)]


def column_heading(row: Mapping) -> str:
    _, unit = PRINT_UNITS.get(row["unit"], (1, row["unit"]))
    return " ".join(filter(None, [row["metric"], unit and f"({unit})", ARROWS[row["direction"]]]))


def value_cell(row: Mapping | None, compact: bool = False, sized: bool = False) -> str:
    """`value [low, high] mark` in the unit of print, or why there is no value; and if asked, on how many records."""
    if row is None:
        return ABSENT
    size = size_text(row["n"], row["n_groups"]) if sized else ""
    if row["value"] is None:
        return " ".join(filter(None, [row["status"].partition(":")[0], size]))
    value, low, high = (number_text(row[name], row["unit"]) for name in ("value", "low", "high"))
    interval = "" if compact else f"[{low}, {high}]"
    return " ".join(filter(None, [value, interval, gain_mark(row) + control_mark(row), size]))


def size_text(n: int, groups: int) -> str:
    return f"(n = {n} in {groups} groups)"


def uneven_metrics(rows: Iterable[Mapping]) -> set[str]:
    """The metrics whose values are not all of equally many records: there each cell says of how many."""
    found: dict[str, set] = {}
    for row in rows:
        found.setdefault(row["metric"], set()).add((row["n"], row["n_groups"]))
    return {metric for metric, sizes in found.items() if len(sizes) > 1}


def number_text(value: float | None, unit: str) -> str:
    if value is None:
        return ABSENT
    factor, unit = PRINT_UNITS.get(unit, (1, unit))
    return f"{value * factor:z.{DECIMALS.get(unit, 3)}f}".replace("-", "−")


def share_text(value: float | None) -> str:
    return number_text(value, "ratio")


def share_cell(row: Mapping | None, sized: bool = False) -> str:
    """What is recovered, in percent, and if asked, on how many records."""
    if row is None or row["recovery"] is None:
        return ABSENT
    size = size_text(row["recovery_n"], row["recovery_groups"]) if sized else ""
    return " ".join(filter(None, [share_text(row["recovery"]), size]))


def mean_cell(row: Mapping | None) -> str:
    """A mean recovery, in percent, and over how many domains if not all."""
    return " ".join(filter(None, [share_cell(row), over_text(row)]))


def over_text(row: Mapping | None) -> str:
    """Over how many domains a mean is; "" if over all of them."""
    return f"({row['over']} of {row['domains']} domains)" if row and row["over"] < row["domains"] else ""


def recovery_facts(row: Mapping | None, mean: Mapping | None, prefix: str = "") -> dict:
    """A recovery and a mean recovery as plain values, with what they are computed on."""
    own = {f"{prefix}{name}": row and row[name] for name in ("recovery", "recovery_n", "recovery_groups")}
    own[f"{prefix}recovery_status"] = row and row["recovery_status"]
    return own | {f"mean_{prefix}{name}": mean and mean[name] for name in ("recovery", "over", "domains")}


def loss_metrics(rows: Iterable[Mapping]) -> dict[str, str]:
    """{domain: what its learning rates are chosen by}, of the domains where that is not the primary metric."""
    return {row["domain"]: row["metric"] for row in rows if not row["primary"]}


def loss_headings(losses: Mapping[str, str]) -> list[str]:
    """Of the columns of recoveries by these metrics, and of their mean."""
    own = [f"{domain}: recovery by {metric} (%)" for domain, metric in losses.items()]
    return [*own, "mean recovery by loss (%)"] if own else []


def recovery_notes(rows: Iterable[Mapping]) -> list[str]:
    """Why systems have no recovery, where they have none."""
    missing = [row for row in rows if row["recovery_status"] != "ok"]
    return sorted({f"{row['domain']}: no recovery by {row['metric']}: {row['recovery_status']}." for row in missing})


def gain_mark(row: Mapping) -> str:
    """▲ or ▼ where the interval of the gain over the base excludes 0."""
    low, high = row["gain_low"], row["gain_high"]
    if low is None or low <= 0 <= high:
        return ""
    return "▲" if low > 0 else "▼"


def control_mark(row: Mapping) -> str:
    """* where the interval of the gain over the best control is above 0."""
    return BEATS if row["vs_control_low"] is not None and row["vs_control_low"] > 0 else ""


def control_systems(controls: Mapping[str, Mapping | None]) -> dict[str, str | None]:
    """{domain: its best control}, from `evaluation.score.choose_control` of each."""
    return {domain: control["system"] if control else None for domain, control in controls.items()}


def control_notes(controls: Mapping[str, Mapping | None], learnt: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Which control is the best in each domain, and whether any adapter or mixture of a table is better.

    Args:
        controls: as of `control_systems`. learnt: {domain: rows of adapters and mixtures, of the primary metric}.
    """
    known = {domain: system for domain, system in control_systems(controls).items() if system}
    if not known:
        return []
    named = "; ".join(f"{domain}: {known.get(domain, 'none')}" for domain in controls)
    lines = [f"Best control without a language model, chosen on valid: {named}. {BETTER}", STRONGEST]
    tested = [domain for domain, control in controls.items() if control and control["split"] == "test"]
    lines += [f"Without answers for valid, chosen on test, which favours it: {', '.join(tested)}."] if tested else []
    lines += [control_verdict(domain, system, learnt[domain]) for domain, system in known.items()]
    return [*lines, *filter(None, (losers_note(domain, system, learnt[domain]) for domain, system in known.items()))]


def control_verdict(domain: str, control: str, rows: Iterable[Mapping]) -> str:
    """Whether the best of some rows is better than the control, by the paired interval."""
    best = best_over_control(rows)
    if best is None:
        return f"{domain}: no adapter or mixture can be compared with {control}."
    gain, low, high = (best[f"vs_control{part}"] for part in ("", "_low", "_high"))
    says, parts = ("worse", (-gain, -high, -low)) if gain < 0 else ("better", (gain, low, high))
    by = "by {} [{}, {}]".format(*(number_text(part, best["unit"]) for part in parts))
    if low > 0:
        return f"{domain}: {best['system']} is better than {control} {by}."
    return f"{domain}: {control} {'wins' if high < 0 else 'is not beaten'}: {best['system']} is {says} {by}."


def losers_note(domain: str, control: str, rows: Iterable[Mapping]) -> str:
    """Which of some rows are worse than the control, by the paired interval; "" if none is."""
    high = {row["system"]: row["vs_control_high"] for row in rows}
    worse = [system for system, bound in high.items() if bound is not None and bound < 0]
    if len(high) == 1:  # the verdict has said so
        return ""
    return f"{domain}: {control} wins over {', '.join(worse)}: their intervals are below 0." if worse else ""


def size_notes(rows: Iterable[Mapping]) -> list[str]:
    """How many records of each split are behind a table; what looks at fewer says so in `explained`."""
    found: dict[str, tuple] = {}
    for row in rows:
        found[row["split"]] = max(found.get(row["split"], (0, 0)), (row["n"], row["n_groups"]))
    return [f"n = {n} ({split}) in {groups} groups." for split, (n, groups) in sorted(found.items(), reverse=True)]


def column_notes(columns: Mapping[str, tuple[Mapping, Iterable[Mapping]]]) -> list[str]:
    """Of the primary metrics of several domains: how many records, how computed, and why numbers are missing.

    Args:
        columns: {domain: (the row that heads its column, its rows)}.
    """
    notes = {
        domain: (*column_size_notes([*rows]), head["note"], *missing_notes(rows))
        for domain, (head, rows) in columns.items()
    }
    return [f"{domain}: {line}" for domain, lines in notes.items() for line in lines if line]


def column_size_notes(rows: Sequence[Mapping]) -> list[str]:
    return ["each cell says of how many records it is."] if uneven_metrics(rows) else size_notes(rows)


def seeds_note(report: Mapping) -> str:
    seeds = report["seeds"]
    names = ", ".join(map(str, seeds))
    line = f"Means over seeds {names}" if len(seeds) > 1 else f"Seed {names} only"
    line += f"; [95 % interval] from {report['resamples']} bootstrap draws of whole groups."
    return " ".join(filter(None, [line, few_seeds_note(seeds)]))


def few_seeds_note(seeds: Sequence[int]) -> str:
    """A warning, or "" where there are enough."""
    return "" if len(seeds) >= FEW_SEEDS else f"Fewer than {FEW_SEEDS} seeds: methods cannot be told from seeds."


def version_notes(versions: Mapping[str, int]) -> list[str]:
    """Which domains' metrics have changed their meaning, of {domain: version}: nothing while it is the first."""
    changed = [f"{domain} {version}" for domain, version in versions.items() if version > 1]
    return [f"Version of the metrics, comparable with no other: {', '.join(changed)}."] if changed else []


def unseen_notes(unseen: Mapping[str, Mapping]) -> list[str]:
    """What of test train has never seen, from `evaluation.score.unseen_counts`."""
    parts = [f"{name} {of['values']} of {of['of']} ({of['records']} records)" for name, of in unseen.items()]
    return [f"Of test, train has never seen: {'; '.join(parts)}."] if parts else []


def too_long_notes(count: int) -> list[str]:
    line = f"{count} references of test are longer than may be written: what is beyond is missing from every answer."
    return [line] if count else []


def metric_notes(metrics: Iterable[Mapping], rows: Iterable[Mapping]) -> list[str]:
    """Which metric is primary, how each is computed, on how many records if not all, and why numbers are missing."""
    metrics = list(metrics)
    first = [f"Primary metric: {row['metric']}." for row in metrics if row["primary"]]
    told = {row["metric"]: "; ".join(filter(None, [row["note"], own_size(row, rows)])) for row in metrics}
    notes = [f"{metric}: {line}" for metric, line in told.items() if line]
    return [*first, *notes, *missing_notes(rows)]


def missing_notes(rows: Iterable[Mapping]) -> list[str]:
    """Why numbers are missing, where a cell has no room to say it."""
    found = {f"{row['metric']}: {row['status']}." for row in rows if row["value"] is None and ":" in row["status"]}
    return sorted(found)


def own_size(column: Mapping, rows: Iterable[Mapping]) -> str:
    """How many records are behind the cells of a metric, where they are not all those of its split."""
    own = {(row["n"], row["n_groups"]) for row in rows if row["metric"] == column["metric"]}
    most = max((row["n"], row["n_groups"]) for row in rows if row["split"] == column["split"])
    return "" if own == {most} else " or ".join(f"n = {n} in {groups} groups" for n, groups in sorted(own))


def audit_note(audit: Mapping) -> str:
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(audit["counts"].items()))
    shared = [
        f"Test ({audit['test']} records) shares with {corpus}: {'; '.join(map(overlap_text, found, found.values()))}."
        for corpus, found in audit["shared"].items()
        if found
    ]
    return " ".join([f"Leak audit, counted again in the written splits: {counts}.", *shared])


def overlap_text(name: str, found: Mapping) -> str:
    sensitivity = found["sensitivity"]
    part = "" if sensitivity in (None, 1) else f" (the search finds {sensitivity:.0%} of such pairs)"
    return f"{name} {found['records']}{part}"


def routing_note(routes: Mapping) -> str:
    """The entropy of the weights and, of a gate that learnt the domains' labels, how many tokens it sends where they
    say; of any other gate that share says nothing, as other mixtures of the experts may answer as well."""
    labels = routes["learns_labels"]
    own = {domain: f"{share_text(share)} %, " if labels else "" for domain, share in routes["top1"].items()}
    each = "; ".join(
        f"{domain} {own[domain]}{routes['entropy'][domain]:.2f} ({routes['tokens'][domain]:,.0f} tokens)"
        for domain in routes["domains"]
    )
    line = "the share of tokens whose heaviest expert is the domain's own, and " if labels else ""
    return f"Routing on test, {line}the weights' entropy (1: uniform): {each}."


def mixer_note(run: Mapping) -> str:
    options = ", ".join(f"{name} {value}" for name, value in sorted(run["options"].items()))
    return f"Mixer: {run['mixer']}" + (f" ({options})." if options else ".")


def rate_notes(run: Mapping) -> list[str]:
    """At which learning rate a mixture was trained and how that was chosen; nothing if it was not trained."""
    rate, rates = run["learning_rate"], run["learning_rates"]
    if rate is None:
        return []
    line = f"Learning rate of the mixture: {rate:g}"
    if len(rates) == 1:
        return [f"{line}, the only one that was tried."]
    line += f" of {', '.join(f'{each:g}' for each in rates)}, by the loss on valid with the first seed, the mean over "
    return [f"{line}domains." + " At the edge of its grid: a better one may lie beyond." * is_edge(rate, rates)]


def best_single_note(recovered: Mapping) -> str:
    """Of a report of `evaluation.recovery`."""
    best = recovered["best_single"]
    if best is None:
        return "Best single: undefined, as no expert has a mean recovery on the validation splits."
    over = next(over_text(row) for row in recovered["valid_means"] if row["system"] == best)
    return " ".join(filter(None, [f"Best single: {best}, by mean recovery on the validation splits", over])) + "."
