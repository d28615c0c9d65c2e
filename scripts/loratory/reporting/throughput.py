"""How fast a base answers for many adapters → a table: a row for each number of adapters."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loratory.data.files import read_json
from loratory.reporting import formats
from loratory.reporting.formats import Layout

NOT_MEASURED = "–"
NOTES = [
    "shared batches: an engine whose rows have adapters of their own. one at a time: each adapter is put on the base, "
    "answers all that it is asked, and is taken off. PEFT: batches of `adapter_names`, all adapters in memory.",
    "first token: seconds from a request's coming to its first token, median and 95th percentile; all come at once.",
    "MB: the most that the pool of the engine held, texts included; of the others, the weights of the adapters that "
    "are in memory at once. On a GPU, device GB is the most that PyTorch held, the base included.",
    "The study's adapters stand under as many names as a row says; the engine and PEFT hold each name's weights.",
]


def write_throughput_table(files: Sequence[Path | str], out: Path | str, *, about: str = "", banner: str = "") -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html`.

    Args:
        files: JSON of `evaluation.throughput`, one for each number of adapters, in their order.
        about: what the base is, in a sentence. banner: a warning above the table.
    """
    formats.write_table(throughput_layout([read_json(path) for path in files], about, banner), out)


def throughput_layout(found: Sequence[Mapping], about: str, banner: str) -> Layout:
    names = list(dict.fromkeys(arm["arm"] for one in found for arm in one["arms"]))
    on_gpu = any(arm["device_bytes"] is not None for one in found for arm in one["arms"])
    header, lines = ["adapters"], [[str(one["adapters"])] for one in found]
    for name in names:
        header += [f"{name}: requests/s", f"{name}: first token (s)", f"{name}: MB"]
        header += [f"{name}: device GB"] if on_gpu else []
        for one, line in zip(found, lines):
            arm = next((arm for arm in one["arms"] if arm["arm"] == name), None)
            line += arm_cells(arm, on_gpu)
    first = found[0]
    asked = (
        f"{first['requests']} requests of {first['prompt_tokens']} random tokens, at most {first['tokens']} written"
    )
    alike = [f"{one['adapters']}: {arm['arm']} {arm['equal']}" for one in found for arm in one["arms"][1:]]
    foot = [f"{asked}, greedily, on {first['device']}.", *NOTES]
    foot += [f"Texts that are token by token those of the shared batches: {', '.join(alike)}."]
    foot += [f"Base: {about}"] if about else []
    facts = ("adapters", "distinct", "requests", "prompt_tokens", "tokens", "device")
    records = [{name: one[name] for name in facts} | arm for one in found for arm in one["arms"]]
    return Layout("Requests for many adapters", banner, header, lines, foot, records)


def arm_cells(arm: Mapping | None, on_gpu: bool) -> list[str]:
    if arm is None:
        return [NOT_MEASURED] * (4 if on_gpu else 3)
    cells = [f"{arm['requests_per_second']:.3g}", f"{arm['first_token']:.3g}, {arm['first_token_p95']:.3g}"]
    cells.append(f"{arm['adapter_bytes'] / 1e6:.3g}")
    device = arm["device_bytes"]
    return [*cells, NOT_MEASURED if device is None else f"{device / 1e9:.2f}"] if on_gpu else cells
