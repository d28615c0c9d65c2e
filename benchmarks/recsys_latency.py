"""Milliseconds a record against the length of the past: a base, a LoRA, RecLoRA and the recommender alone.

    PYTHONPATH=scripts python benchmarks/recsys_latency.py --device cpu

Made-up ratings and a base's folder (a shipped one by default); weights are as they start, which costs what trained
ones cost. The median of several passes over one batch; encoding is left out.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from loratory.adapters import core
from loratory.adapters.methods.lora import Method
from loratory.bases.core import Base, load_base
from loratory.bases.options import BaseEntry
from loratory.bases.prepare import prepare_folder
from loratory.domains.contract import Example
from loratory.domains.recommender import DeepInterest
from loratory.mixers.core import Mixture
from loratory.mixers.methods.reclora import Mixer

SHIPPED = Path(__file__).parent.parent / "resources" / "bases" / "mini_lm"
RANK, METAS, SEARCHED = 8, 4, 10


def question(events: int, shown: int) -> Example:
    """A record with a past of `events` ratings, of which the prompt shows the last `shown`."""
    lines = [f"- Silver Canyon {n} (1977) (4 stars)" for n in range(min(shown, events))]
    prompt = "\n".join(
        ["The user rated these movies in the past:", *lines, "Will he like ***Lunar Colony***? yes or no:"]
    )
    past = tuple((n + 2, 400) for n in range(events))
    return Example("a", "u", prompt, " yes", (" no", " yes"), context=((1, 0), *past))


def median_milliseconds(run, records: int, repeats: int, device: torch.device) -> float:
    """Of one pass over `records` records."""
    times = []
    for _ in range(repeats + 2):
        started = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - started)
    return 1000 * median(times[2:]) / records


@torch.no_grad()
def measure(base, events: int, shown: int, records: int, repeats: int) -> dict[str, float]:
    """{system: milliseconds a record}."""
    example = question(events, shown)
    items, choices = [base.encode(example)] * records, example.choices
    batch = base.collate(items)
    found, ask = {}, lambda model: base.choice(model, items, choices)
    found["base"] = median_milliseconds(lambda: ask(base.model), records, repeats, base.device)
    core.attach(base.model, Method(rank=RANK), 0, ())
    found["lora"] = median_milliseconds(lambda: ask(base.model.eval()), records, repeats, base.device)
    given = core.export(base.model, (), {})
    core.detach(base.model)
    for combine in ("paper", "released"):
        mixer = Mixer(meta_loras=METAS, combine=combine)
        mixture = Mixture(base.model, mixer.prepare_experts({"recsys": given}, 0), mixer).eval()
        name = f"reclora, {combine}"
        found[name] = median_milliseconds(lambda mixture=mixture: ask(mixture), records, repeats, base.device)
        mixture.remove_experts()
    for name, searched in (("din", None), ("sim", SEARCHED)):
        recommender = DeepInterest(searched).eval().to(base.device)
        ask_alone = partial(recommender, batch["context"])
        found[name] = median_milliseconds(ask_alone, records, repeats, base.device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", nargs="?", type=Path, default=SHIPPED, help="folder of a causal base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pasts", type=int, nargs="+", default=[5, 10, 20, 40], help="ratings of a past")
    parser.add_argument("--records", type=int, default=8, help="of a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shown", type=int, default=None, help="most ratings in the prompt; all of them if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = open_base(options.base, options.device, Path(scratch))
        print(f"{options.base.name} on {options.device}, {options.records} records a batch, ms a record", flush=True)
        for events in options.pasts:
            found = measure(base, events, options.shown or events, options.records, options.repeats)
            cells = "  ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in found.items())
            print(f"{events:4} ratings  {cells}", flush=True)


def open_base(folder: Path, device: str, scratch: Path) -> Base:
    """A prepared copy of a folder that is none."""
    prepare_folder(folder, folder.name, BaseEntry(family="causal", path=str(folder)), scratch / "base")
    return load_base(scratch / "base", device)


if __name__ == "__main__":
    main()
