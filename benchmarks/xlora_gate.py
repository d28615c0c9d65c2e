"""X-LoRA gate training: stacked experts against PEFT's XLora, from equal first losses.

    python benchmarks/xlora_gate.py [experts …]

A step is one batch of full rows, cross-entropy on all tokens, and AdamW on a gate of depth 1; base and experts (all
seven linear layers of a Llama shape with random weights) stay as they are. Ours as it is, with the base's hidden
states read from disk (`features: true`), with activations computed anew (`gradient_checkpointing: true`), and both; on
a GPU also as steps are made there, replayed as CUDA graphs, while the other arms pass one by one.

On a CPU: 29 M weights, fp32, CPU seconds of the process on one thread, arms in turn. On a GPU: 1.1 G weights, bf16,
seconds between synchronisations and the allocator's peak, arms one after another; PEFT as it comes (its experts are
fp32 on any base), and with its experts and gate cast to bf16.
"""

import gc
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import peft  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from loratory.adapters import deltas  # noqa: E402
from loratory.adapters.core import linear_layers  # noqa: E402
from loratory.bases.families.causal import Family as Causal  # noqa: E402
from loratory.mixers.core import Mixture  # noqa: E402
from loratory.mixers.methods.xlora import Mixer  # noqa: E402
from loratory.training import replay  # noqa: E402
from loratory.training.features import HIDDEN, StoredStates, pad_states, shard_name  # noqa: E402
from loratory.training.fit import Loss, MicroBatch  # noqa: E402
from loratory.training.schedule import Training  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """What is measured, and how far apart two first losses may be."""

    model: dict
    rank: int
    rows: int
    length: int
    dtype: torch.dtype
    tolerance: float
    rounds: int


SMALL = {"hidden_size": 512, "intermediate_size": 1360, "num_hidden_layers": 8, "num_attention_heads": 8}
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
SHAPES = {
    "cpu": Shape(SMALL | {"vocab_size": 4096}, 8, 4, 128, torch.float32, 1e-4, 5),
    "cuda": Shape(LARGE | {"vocab_size": 32000, "num_key_value_heads": 8}, 16, 8, 512, torch.bfloat16, 2e-3, 8),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = SHAPES[DEVICE]
ARMS = {"ours": (False, False), "features": (True, False), "checkpointing": (False, True), "both": (True, True)}


def model(device=DEVICE) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE.model, max_position_embeddings=SHAPE.length, use_cache=False, dtype=SHAPE.dtype)
    config.pad_token_id = None
    with torch.device(device):
        return LlamaForCausalLM(config).to(SHAPE.dtype).eval()


def expert(layers: dict, seed: int) -> deltas.Adapter:
    random = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape, std):
        return torch.empty(shape, device=DEVICE).normal_(0, std, generator=random).cpu()

    def change(layer):
        wide, narrow = layer.weight.shape
        return deltas.LowRank(normal(SHAPE.rank, narrow, std=narrow**-0.5), normal(wide, SHAPE.rank, std=0.05), 2.0)

    return deltas.Adapter({name: change(layer) for name, layer in layers.items()})


def gate_of(outputs: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    width = SHAPE.model["hidden_size"]
    return [torch.randn(outputs, width, generator=random) * 0.1, torch.zeros(outputs)]


def theirs(experts: dict, order: list[int], folder: Path, cast: bool):
    """PEFT's step, and its gate's parameters."""
    paths = {}
    for name, adapter in experts.items():
        paths[name] = str(folder / name)
        if not (folder / name).is_dir():
            deltas.save_adapter(folder / name, adapter, causal=True)
    options = {"hidden_size": SHAPE.model["hidden_size"], "xlora_depth": 1, "layerwise_scalings": True}
    mixed = peft.get_peft_model(model(), peft.XLoraConfig(task_type="CAUSAL_LM", adapters=paths, **options))
    mixed = mixed.to(DEVICE, SHAPE.dtype if cast else None).train()
    gate = list(mixed.base_model.internal_xlora_classifier.parameters())
    for parameter, value in zip(gate, gate_of(len(order) * len(experts))):
        back = torch.tensor(order).argsort()  # PEFT counts layers in the model's order
        parameter.data.copy_(value.unflatten(0, (-1, len(experts)))[back].flatten(0, 1))
    return lambda ids: mixed(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss, gate


def ours(experts: dict, folder: Path, features: bool, checkpointing: bool):
    """Our base and mixture, and batches of ids as they learn from them."""
    base = Causal("", {"weights_sha256": ""}, model(), SimpleNamespace(pad_token_id=0))
    mixture = Mixture(base.model, experts, Mixer())
    if checkpointing:
        mixture.checkpoint_gradients()
    gate = list(mixture.train().gate.parameters())
    for parameter, value in zip(gate, gate_of(len(gate[0]))):
        parameter.data.copy_(value)

    @cache
    def known(ids):
        folder.mkdir(exist_ok=True)
        states = mixture.bare_states({"input_ids": ids})["tokens"].cpu()
        save_file({HIDDEN: states.flatten(0, 1)}, folder / shard_name(0))
        mapped = safe_open(folder / shard_name(0), framework="pt").get_slice(HIDDEN)
        return [StoredStates(mapped, row * SHAPE.length, (row + 1) * SHAPE.length) for row in range(SHAPE.rows)]

    def batch(ids):
        found = {"ids": ids, "labels": ids, "prompt": torch.ones_like(ids, dtype=torch.bool)}
        return found | ({"hidden": pad_states(known(ids), DEVICE)} if features else {})

    return base, mixture, gate, batch


def passed(*given):
    base, mixture, gate, batch = ours(*given)

    def loss(ids):
        total, targets = base.loss(mixture, batch(ids))
        return total / targets

    return Arm(loss, gate)


class Arm:
    """One way of training the gate, and what its steps took."""

    def __init__(self, loss, gate):
        self.loss, self.optimizer = loss, torch.optim.AdamW(gate, lr=1e-3, weight_decay=0.0)
        self.losses, self.seconds = [], []

    def step(self, ids) -> None:
        before = now()
        loss = self.loss(ids)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(now() - before)
        self.losses.append(float(loss.detach()))


class ReplayedArm(Arm):
    """The gate's steps as the training loop makes them on a GPU."""

    def __init__(self, base, mixture, gate, batch):
        super().__init__(lambda micro: Loss(base.summed_nll(mixture, micro.batch), micro.targets), gate)
        self.base, self.batch, self.recipe = base, batch, Training(batch_tokens=SHAPE.rows * SHAPE.length)
        self.replays = replay.Replays(gate, self.loss, Accelerator(), "replayed")

    def step(self, ids) -> None:
        before = now()
        batch = self.batch(ids)
        micro = replay.fix_shape(self.base, MicroBatch("gate", batch, self.base.count_targets(batch)), self.recipe)
        self.replays.begin_step()
        loss = self.replays.add_pass(micro, micro.targets)
        self.replays.give_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(now() - before)
        self.losses.append(float(loss))


def now() -> float:
    if DEVICE == "cpu":
        return process_time()
    torch.cuda.synchronize()
    return perf_counter()


def builders(number: int, folder: Path) -> dict:
    layers = linear_layers(model("meta"))
    experts = {str(i): expert(layers, i) for i in range(number)}
    order = [list(layers).index(name) for name in sorted(layers)]
    made = {"peft": lambda: Arm(*theirs(experts, order, folder, cast=False))}
    if SHAPE.dtype != torch.float32:
        made["peft, cast"] = lambda: Arm(*theirs(experts, order, folder, cast=True))
    for name, given in ARMS.items():
        made[name] = lambda name=name, given=given: passed(experts, folder / name, *given)
    for name, features in {"replayed": False, "replayed, features": True}.items() if DEVICE == "cuda" else ():
        made[name] = lambda name=name, given=features: ReplayedArm(*ours(experts, folder / name, given, False))
    return made


def in_turn(makers: dict, ids) -> tuple[dict, dict]:
    arms = {name: make() for name, make in makers.items()}
    for turn in range(SHAPE.rounds + 1):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            arms[name].step(ids)
    return arms, dict.fromkeys(arms, 0)


def one_after_another(makers: dict, ids) -> tuple[dict, dict]:
    arms, peaks = {}, {}
    for name, make in makers.items():
        arms[name] = make()
        for step in range(SHAPE.rounds + 2):
            if step == 2:  # what is set up once is set up
                torch.cuda.reset_peak_memory_stats()
            arms[name].step(ids)
        torch.cuda.empty_cache()  # what stays besides tensors is the memory of graphs
        peaks[name] = max(torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved())
        arms[name] = SimpleNamespace(losses=arms[name].losses, seconds=arms[name].seconds)
        gc.collect()
        torch.cuda.empty_cache()
    return arms, peaks


def main(numbers: list[int]) -> None:
    torch.set_num_threads(1)
    vocabulary = SHAPE.model["vocab_size"]
    ids = torch.randint(3, vocabulary, (SHAPE.rows, SHAPE.length), generator=torch.Generator().manual_seed(2))
    measure = in_turn if DEVICE == "cpu" else one_after_another
    for number in numbers:
        with TemporaryDirectory() as folder:
            arms, peaks = measure(builders(number, Path(folder)), ids.to(DEVICE))
        first = arms["peft"].losses[0]
        slow = median(arms["peft"].seconds[-SHAPE.rounds :])
        for name, arm in arms.items():
            if abs(arm.losses[0] - first) > SHAPE.tolerance:
                raise SystemExit(f"{name}: first loss {arm.losses[0]:.6f}, PEFT's {first:.6f}: no ratio")
            fast = median(arm.seconds[-SHAPE.rounds :])
            memory = f", {peaks[name] / 1e9:.2f} GB" if peaks[name] else ""
            told = f"loss {arm.losses[0]:.5f} to {arm.losses[-1]:.5f}"
            print(f"{number} experts, {name}: {fast:.4f} s, ratio {slow / fast:.2f}{memory}, {told}", flush=True)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or [4, 16])
