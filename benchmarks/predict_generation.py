"""What a step of generation costs in `predict`: eager steps against steps that a GPU replays as graphs.

    python benchmarks/predict_generation.py BASE [--rows 8] [--tokens 120] [--prompt 16] [--precision fp32]
        [--rounds 3]

BASE is a Hugging Face folder of a causal model, or a base that the workflow prepared. It writes plain, with a LoRA,
and under an X-LoRA mixture of three; no row ends before the others. Printed: ms a step (in which all rows write a
token; the prompt's pass included, what is done once for a shape left out and given apart), their ratio, and the share
of rows whose texts are the same. Without a GPU both arms run the same steps, in place or not, and nothing is replayed.
"""

import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402

from loratory.adapters import core, deltas  # noqa: E402
from loratory.bases.core import MANIFEST, load_base  # noqa: E402
from loratory.bases.families.causal import Family as Causal  # noqa: E402
from loratory.bases.prepare import prepare_folder  # noqa: E402
from loratory.config import BaseEntry  # noqa: E402
from loratory.domains.contract import Example  # noqa: E402
from loratory.mixers.core import Mixture  # noqa: E402
from loratory.mixers.generation import StepsByShape  # noqa: E402
from loratory.mixers.methods.xlora import Mixer as XLora  # noqa: E402
from loratory.training.mixture import start_gate  # noqa: E402

EXPERTS, RANK = 3, 8
WORDS = "the quick brown fox jumps over the lazy dog and nobody knows what it was that it jumped for in the end "


class Endless(Causal):
    """A base that never says that it has done."""

    end, filler = -1, 0


def open_base(folder: Path, device: str, precision: str, scratch: Path) -> Endless:
    if not (folder / MANIFEST).is_file():
        prepare_folder(folder, folder.name, BaseEntry(family="causal", path=str(folder)), scratch / "base")
        folder = scratch / "base"
    base = load_base(folder, device, precision)
    base.__class__ = Endless
    return base


def random_expert(model, seed: int) -> deltas.Adapter:
    random, found = torch.Generator().manual_seed(seed), deltas.Adapter()
    for name, layer in core.linear_layers(model).items():
        a = torch.randn(RANK, layer.in_features, generator=random) / layer.in_features**0.5
        b = torch.randn(layer.out_features, RANK, generator=random) * 0.01
        found.deltas[name] = deltas.LowRank(a, b, 2.0)
    return found


def measure(base: Endless, model, options) -> str:
    """A line about one model."""
    words = WORDS.split() * (2 + options.prompt // 10)
    prompts = [" ".join(words[row : row + options.prompt]) for row in range(options.rows)]
    items = [base.encode(Example(str(row), "g", prompt, "")) for row, prompt in enumerate(prompts)]
    steps = StepsByShape(model)
    eager, first, texts = timed(lambda: base.text(model, items, options.tokens), options.rounds)
    quick, once, same = timed(lambda: base.text(model, items, options.tokens, in_place=steps), options.rounds)
    graphs = sum(graph is not None for graph in steps.latest.graphs.values())
    share = sum(map(str.__eq__, texts, same)) / len(texts)
    e, q = (1000 * seconds / options.tokens for seconds in (eager, quick))
    apart = f"once: {first - eager:.2f} and {once - quick:.2f} s"
    return f"eager {e:7.2f} ms  in place {q:7.2f} ms  ratio {e / q:5.2f}  same {share:.2f}  graphs {graphs}  {apart}"


def timed(run: Callable[[], list[str]], rounds: int) -> tuple[float, float, list[str]]:
    """Median seconds, those of a first run before, and what was written: text, so the device is done."""
    seconds = []
    for _ in range(rounds + 1):
        started = perf_counter()
        texts = run()
        seconds.append(perf_counter() - started)
    return median(seconds[1:]), seconds[0], texts


@torch.no_grad()
def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--prompt", type=int, default=16, help="words")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(
        f"{options.base.name} {options.precision} on {name}, torch {torch.__version__}: {options.rows} rows",
        flush=True,
    )
    with TemporaryDirectory() as scratch:
        base = open_base(options.base, options.device, options.precision, Path(scratch))
        report("plain", base, lambda: base.model, lambda model: None, options)
        experts = {str(seed): random_expert(base.model, seed) for seed in range(EXPERTS)}
        report("LoRA", base, lambda: with_lora(base, experts["0"]), lambda model: core.detach(base.model), options)
        report("X-LoRA", base, lambda: mixture(base, experts), lambda model: model.remove_experts(), options)


def with_lora(base: Endless, adapter: deltas.Adapter):
    core.apply(base.model, adapter, "lora")
    return base.model


def mixture(base: Endless, experts: dict[str, deltas.Adapter]) -> Mixture:
    made = Mixture(base.model, experts, XLora(depth=1, layerwise=True)).eval()
    start_gate(made.gate, 0)
    return made


def report(name: str, base: Endless, put_on: Callable, take_off: Callable, options) -> None:
    """Prints a model's line; what fails is printed too, and the next one runs."""
    model = put_on()
    try:
        print(f"{name:8} {measure(base, model, options)}", flush=True)
    except Exception:  # a figure of the others is worth having
        traceback.print_exc()
    finally:
        take_off(model)


if __name__ == "__main__":
    main()
