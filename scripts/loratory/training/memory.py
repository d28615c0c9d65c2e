"""How much memory a training will take, known before its base is loaded.

The first step is rehearsed with tensors that have shapes and no numbers (PyTorch's FakeTensorMode): the model is made
from its config, the adapter put on it, as many positions as a pass may have read, learnt from and stepped on, and what
is alive is counted. So whatever an architecture, a method or a precision keeps is in the figure. It leaves out: what a
GPU's libraries take for themselves, rounding up by allocators, passes that a method makes before its first step, and
an audio prefix. All positions count as scored; a batch whose prompts are long has less of logits.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig

from loratory.adapters import core
from loratory.adapters.contract import Method
from loratory.adapters.methods import lora
from loratory.adapters.methods.lisa import transformer_layers
from loratory.bases.core import MANIFEST, family_class, open_tokenizer, read_object
from loratory.bases.memory import SMALL, free_bytes, in_gb, packed_bytes, stored_parameters
from loratory.bases.options import PACKED
from loratory.bases.precision import DTYPES
from loratory.errors import InputError, short_value
from loratory.training.recompute import recompute_activations
from loratory.training.schedule import Training

LENGTH = 256  # positions of a row of the rehearsed batch: attention keeps no squares of it
REHEARSED = ("causal", "masked")  # families that are asked by token ids alone, and have no heads to be made
UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException)  # shapes that follow from numbers


@dataclass(frozen=True)
class Sharing:
    """What of a training is shared, and with whom.

    Attributes:
        recompute: whether activations are computed anew in the backward pass.
        processes: that hold the base's layers in parts. runs: trainings that share each pass.
    """

    recompute: bool = False
    processes: int = 1
    runs: int = 1


@dataclass(frozen=True)
class Estimate:
    """Of what a process trains at once, in bytes.

    Attributes:
        weights: of the base. learnt: adapter, or what is trained of the base with its originals and masters; and the
            gradients and moments of all that.
        passing: what a step holds besides at its peak: activations, logits, and temporary tensors.
        positions: of the pass. All but the weights are of all trainings that share it.
    """

    weights: int
    learnt: int
    passing: int
    positions: int

    @property
    def total(self) -> int:
        return self.weights + self.learnt + self.passing

    def __str__(self) -> str:
        return (
            f"about {in_gb(self.total)}: weights {in_gb(self.weights)}, what is learnt with its optimizer "
            f"{in_gb(self.learnt)}, activations and logits of {self.positions} positions {in_gb(self.passing)}"
        )


def require_training_room(folder: Path | str, method: Method, recipe: Training, device: str, how: Sharing) -> None:
    """Prints the estimate for a base that is not small.

    Raises:
        InputError: the device has less free memory.
    """
    manifest = read_object(Path(folder) / MANIFEST)
    if manifest["family"] not in REHEARSED or stored_parameters(folder) < SMALL:
        return
    try:
        needed, free = estimate_training(folder, method, recipe, device, how), free_bytes(device)
    except Exception as error:  # of an architecture that cannot be rehearsed: no reason not to train it
        print(f"memory: not estimated, {type(error).__name__}: {short_value(str(error))}", flush=True)
        return
    print(f"memory: {needed}; free on {device}: {in_gb(free)}", flush=True)
    if needed.total > free:
        fix = "set `micro_batch_tokens` or `gradient_checkpointing`, or hold the base in `bf16` or `nf4`"
        fix = "lower `together`" if how.runs > 1 else fix
        raise InputError(folder, f"training on it takes {needed}", f"{in_gb(free)} free on {device}", fix=fix)


def estimate_training(
    folder: Path | str, method: Method, recipe: Training, device: str, how: Sharing = Sharing()
) -> Estimate:
    """Of a prepared folder's base, opened in its precision."""
    folder, manifest = Path(folder), read_object(Path(folder) / MANIFEST)
    family, held = family_class(manifest["family"]), manifest.get("precision", "fp32")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    tokenizer = open_tokenizer(folder)
    with FakeTensorMode(), LiveBytes() as live:
        model = family.model_class.from_config(config, dtype=DTYPES[held])
        base = family(folder, manifest, model.requires_grad_(False), tokenizer)
        shared = shared_bytes(model, how.processes)
        copied = copied_inputs(model, held, how.recompute)
        with recompute_activations(model, how.recompute):
            alone = rehearse(base, method, recipe, live, held, torch.device(device).type == "cuda")
    passing = alone.passing + alone.positions * copied
    learnt, passing, positions = (how.runs * size for size in (alone.learnt, passing, alone.positions))
    return Estimate(alone.weights - shared, learnt, passing, positions)


def shared_bytes(model: torch.nn.Module, processes: int) -> int:
    """What a process holds less of the weights, as other ones do: of each layer its part, and two layers gathered, the
    one that computes and the next."""
    layers = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in transformer_layers(model)]
    return max(0, sum(layers) - sum(layers) // processes - 2 * max(layers, default=0))


def copied_inputs(model: torch.nn.Module, held: str, recompute: bool) -> int:
    """Bytes of a position that layers in 8 bits keep besides, for the backward pass: each its own input, in half
    precision and in 8 bits (of an 8 B Llama on an H200: 16.7 GB of 4,096 positions, where this says 15.3)."""
    if held != "int8":
        return 0
    blocks = transformer_layers(model) if recompute else []  # one at a time is computed anew
    return 3 * sum(core.weight_shape(layer)[1] for layer in core.linear_layers(model).values()) // max(1, len(blocks))


def rehearse(base: Any, method: Method, recipe: Training, live: LiveBytes, held: str, foreach: bool) -> Estimate:
    """Two steps: gradients and moments are there from the first step on."""
    model, weights, saved = base.model, live.now, 0
    if held in PACKED:  # rehearsed in bf16; the largest layer is unpacked in passing
        layers = core.linear_layers(model).values()
        saved = sum(layer.weight.numel() * 2 - packed_bytes(core.weight_shape(layer), held) for layer in layers)
        saved -= max(layer.weight.numel() * 2 for layer in layers)
    attach_somehow(model, method, base.heads)
    parameters = list(core.trainable_parameters(model).values())
    length = min(LENGTH, recipe.pass_tokens, base.context)
    rows = max(1, recipe.pass_tokens // length)
    ids = torch.zeros(rows, length, dtype=torch.long)
    optimizer = torch.optim.AdamW(parameters, foreach=foreach)
    model.train()
    for _ in range(2):
        live.reset_peak()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = model(input_ids=ids, **({"use_cache": False} if base.family == "causal" else {})).logits
            loss = token_loss(logits)
        del logits
        loss.backward()
        del loss
        optimizer.step()
        learnt = live.now - weights
        optimizer.zero_grad(set_to_none=True)
    return Estimate(weights - saved, learnt, live.peak - weights - learnt, rows * length)


def token_loss(logits: torch.Tensor) -> torch.Tensor:
    """As the families' own, of any labels."""
    labels = torch.zeros(logits.shape[:-1], dtype=torch.long)
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="sum")


def attach_somehow(model: torch.nn.Module, method: Method, heads: tuple[str, ...]) -> None:
    """A method whose start reads numbers counts as a LoRA of its rank."""
    try:
        core.attach(model, method, 0, heads)
    except UNKNOWN:
        core.detach(model)
        plain = lora.Method(rank=getattr(method, "rank", 8), target_modules=method.target_modules)
        core.attach(model, plain, 0, heads)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, each storage once.

    Attributes:
        now: of this moment. peak: the most since `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def reset_peak(self) -> None:
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.note_storage(tensor.untyped_storage())
        return result

    def note_storage(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget_bytes, storage.nbytes())

    def forget_bytes(self, size: int) -> None:
        self.now -= size
