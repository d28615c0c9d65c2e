"""X-LoRA generation against PEFT's: stacked experts, two caches, and on a GPU steps that are replayed as graphs.

    python benchmarks/xlora_generate.py [--device cpu|cuda] [--tokens 128] [--compile] [--arms NAME …]

Llama shapes of random weights, four experts on all seven linear layers, a layer-wise gate of depth 1, greedy:

- cpu: 29 M weights (8 layers, width 512), rank 8, fp32, batch 4, prompt 32; CPU seconds of one thread.
- cuda: 1.1 B weights (16 layers, width 2048), rank 16, batch 8, prompt 256; seconds. Tokens are compared in fp32,
  where kernels agree; times are of bf16, where they need not.

Every arm runs once with few tokens to warm up; PEFT's XLora then runs once on a GPU, all others in turn, medians.
"""

import gc
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import peft  # noqa: E402
import torch  # noqa: E402
from random_models import random_adapter, random_base  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from loratory.adapters import core, deltas  # noqa: E402
from loratory.mixers.core import Mixture  # noqa: E402
from loratory.mixers.generation import FixedSteps, generate  # noqa: E402
from loratory.mixers.layers import MixedLinear  # noqa: E402
from loratory.mixers.methods.xlora import Mixer  # noqa: E402

EXPERTS = 4


@dataclass(frozen=True)
class Setup:
    device: str
    dtype: torch.dtype
    sizes: dict
    vocabulary: int
    rank: int
    batch: int
    prompt: int
    tokens: int


SETUPS = {
    "cpu": Setup(
        "cpu",
        torch.float32,
        {"hidden_size": 512, "intermediate_size": 1360, "num_hidden_layers": 8, "num_attention_heads": 8},
        vocabulary=4096,
        rank=8,
        batch=4,
        prompt=32,
        tokens=128,
    ),
    "cuda": Setup(
        "cuda",
        torch.bfloat16,
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        vocabulary=32000,
        rank=16,
        batch=8,
        prompt=256,
        tokens=128,
    ),
}


def base(setup: Setup) -> LlamaForCausalLM:
    made = random_base(setup.sizes, setup.vocabulary, setup.device, setup.dtype)
    made.config.use_cache = False
    return made


@dataclass
class Models:
    base: LlamaForCausalLM
    one: LlamaForCausalLM
    mixture: Mixture
    peft_one: peft.PeftModel
    peft_mixture: peft.PeftModel


def models(setup: Setup) -> Models:
    """All of the same base, experts and gate."""
    plain = base(setup)
    experts = {str(i): random_adapter(plain, setup.rank, i) for i in range(EXPERTS)}
    one = base(setup)
    core.apply(one, experts["0"], "0")
    mixture = Mixture(base(setup), experts, Mixer(depth=1, layerwise=True)).eval()
    with TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / name) for name in experts}
        for name, adapter in experts.items():
            deltas.save_adapter(Path(folder) / name, adapter, causal=True)
        config = peft.XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=setup.sizes["hidden_size"],
            adapters=paths,
            xlora_depth=1,
            layerwise_scalings=True,
        )
        peft_one = peft.PeftModel.from_pretrained(base(setup), paths["0"]).eval()
        peft_mixture = peft.get_peft_model(base(setup), config).eval()
    share_gate(mixture, peft_mixture, 2 / setup.sizes["hidden_size"] ** 0.5)
    return Models(plain, one, mixture, peft_one, peft_mixture)


def share_gate(mixture: Mixture, theirs: peft.PeftModel, spread: float) -> None:
    slots = [name for name, module in mixture.model.named_modules() if isinstance(module, MixedLinear)]
    order = [slots.index(name) for name in sorted(slots)]  # PEFT counts layers in the model's order
    torch.manual_seed(1)
    for mine, its in zip(mixture.gate.parameters(), theirs.base_model.internal_xlora_classifier.parameters()):
        its.data.normal_(0, spread)
        mine.data.copy_(its.data.float().unflatten(0, (-1, EXPERTS))[order].flatten(0, 1))


def arms(setup: Setup, made: Models, compiled: bool) -> dict[str, Callable[[int], list[list[int]]]]:
    """{name: writes so many tokens}."""
    random = torch.Generator().manual_seed(2)
    prompt = torch.randint(3, setup.vocabulary, (setup.batch, setup.prompt), generator=random).to(setup.device)
    mask, length = torch.ones_like(prompt), setup.prompt + setup.tokens

    def theirs(model):
        use_cache = model is made.peft_one

        def run(tokens):
            done = model.generate(
                input_ids=prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False, use_cache=use_cache
            )
            return done[:, setup.prompt :].tolist()

        return run

    def ours(model, fixed=None, **options):
        return lambda tokens: generate(model, prompt, mask, max_new_tokens=tokens, eos=(), fixed=fixed, **options)

    found = {
        "base, cache": ours(made.base),
        "one LoRA, PEFT, cache": theirs(made.peft_one),
        "one LoRA, cache": ours(made.one),
        "X-LoRA, PEFT": theirs(made.peft_mixture),
        "X-LoRA, two caches": ours(made.mixture),
        "X-LoRA, gate of the prompt (approximate)": ours(made.mixture, hold_after=0),
    }
    if setup.device == "cpu":
        return found
    plain, one, mixed = (FixedSteps(model, setup.batch, length) for model in (made.base, made.one, made.mixture))
    found |= {
        "base, graphs": ours(made.base, plain),
        "one LoRA, graphs": ours(made.one, one),
        "X-LoRA, graphs": ours(made.mixture, mixed),
        "X-LoRA, graphs, gate of the prompt (approximate)": ours(made.mixture, mixed, hold_after=0),
    }
    if compiled:
        steps = FixedSteps(made.mixture, setup.batch, length, compiled=True)
        found["X-LoRA, graphs, compiled"] = ours(made.mixture, steps)
    return found


EXACT = ("X-LoRA, PEFT", "X-LoRA, two caches", "X-LoRA, graphs", "X-LoRA, graphs, compiled")


def check(written: dict[str, list]) -> None:
    """Ends the program if arms that are exact wrote different tokens."""
    found = {name: tokens for name, tokens in written.items() if name in EXACT}
    if any(tokens != next(iter(found.values())) for tokens in found.values()):
        raise SystemExit(f"different tokens, so no ratio: { ({n: t[0][:12] for n, t in found.items()}) }")


def agreement(one: list[list[int]], other: list[list[int]]) -> float:
    """Share of equal tokens."""
    pairs = [(a, b) for x, y in zip(one, other) for a, b in zip(x, y)]
    return sum(a == b for a, b in pairs) / len(pairs)


@torch.no_grad()
def timed(setup: Setup, runs: dict, rounds: int) -> tuple[dict[str, list[float]], dict[str, list]]:
    clock = process_time if setup.device == "cpu" else perf_counter
    seconds, written = {name: [] for name in runs}, {}
    for name, run in runs.items():
        before = clock()
        run(4)
        print(f"  {name}: 4 tokens and what is done once, {clock() - before:.2f} s", flush=True)
    for turn in range(rounds):
        for name, run in list(runs.items())[:: 1 if turn % 2 else -1]:
            if turn and setup.device == "cuda" and name == "X-LoRA, PEFT":
                continue
            before = clock()
            written[name] = run(setup.tokens)  # lists of numbers: the device is done
            seconds[name].append(clock() - before)
    return seconds, written


@torch.no_grad()
def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--device", choices=sorted(SETUPS), default="cpu")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="an arm with torch.compile, on a GPU")
    parser.add_argument("--arms", nargs="+", help="these alone")
    options = parser.parse_args()
    setup = replace(SETUPS[options.device], tokens=options.tokens)
    torch.set_num_threads(1)
    if setup.device == "cuda":
        small = replace(setup, dtype=torch.float32, tokens=min(32, setup.tokens))
        if options.compile:
            small = replace(small, sizes=small.sizes | {"num_hidden_layers": 4})  # compiled in a quarter of the time
        runs = chosen(small, options)
        written = {name: run(small.tokens) for name, run in runs.items() if name in EXACT}
        check(written)
        kinds = len({id for row in next(iter(written.values())) for id in row})
        what = f"fp32, {small.sizes['num_hidden_layers']} layers: {small.tokens} tokens a row ({kinds} different ids)"
        print(f"{what} are equal in {list(written)}", flush=True)
        del runs
        gc.collect()
        torch.cuda.empty_cache()
    seconds, written = timed(setup, chosen(setup, options), options.rounds)
    if setup.device == "cpu":
        check(written)
    report(seconds, written)


def chosen(setup: Setup, options) -> dict[str, Callable]:
    found = arms(setup, models(setup), options.compile)
    return {name: run for name, run in found.items() if not options.arms or name in options.arms}


def report(seconds: dict[str, list[float]], written: dict[str, list]) -> None:
    """Ratios and equal tokens are those to PEFT's XLora, or to the first arm where that was not run."""
    like = "X-LoRA, PEFT" if "X-LoRA, PEFT" in seconds else next(iter(seconds))
    for name, found in seconds.items():
        ratio, same = median(seconds[like]) / median(found), agreement(written[name], written[like])
        runs = " ".join(f"{s:.3f}" for s in found)
        print(f"{name:50} {median(found):8.3f} s  {ratio:6.2f} x  same tokens {same:.2f}  runs {runs}")


if __name__ == "__main__":
    main()
