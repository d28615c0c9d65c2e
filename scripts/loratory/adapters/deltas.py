"""What a trained adapter amounts to, how it is stored, and its exchange with PEFT.

Low-rank changes are a PEFT folder (`adapter_config.json` + `adapter_model.safetensors`). What has no low rank is in
`delta.safetensors`; what depends on the input in `own.safetensors`, with its method in `own.json`. Only explicit keys
are read and written; whatever this file does not understand is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import linear

from loratory import registry
from loratory.adapters.peft_config import LONGEST_NAME, LoraConfig, read_lora_config
from loratory.adapters.reading import open_options, read_tensors, require_float
from loratory.adapters.spectrum import leading_singular_vectors
from loratory.bases.checks import PICKLES, check_links, read_object
from loratory.data.files import atomic_write, write_json
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.adapters.contract import Method, Tensors

CONFIG, WEIGHTS, RUN = "adapter_config.json", "adapter_model.safetensors", "run.json"
DENSE, OWN, OWN_CONFIG = "delta.safetensors", "own.safetensors", "own.json"
CHANGE, HEAD = "change/", "head/"  # what a tensor of `delta.safetensors` is
PREFIX = "base_model.model."
FACTORS = {"A.weight": "A", "B.weight": "B"}


@dataclass(frozen=True)
class LowRank:
    """ΔW = scale · B A with A `[rank, in]`, B `[out, rank]`; a convolution's `in` is channels · `kernel`."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float
    kernel: int = 1

    @classmethod
    def from_matrix(cls, matrix: torch.Tensor, rank: int) -> LowRank:
        """The change of `rank` nearest to `[out, in]` in the Frobenius norm; of large ones see `spectrum`."""
        left, values, right = leading_singular_vectors(matrix, rank)
        return cls(right.contiguous(), (left * values).contiguous(), 1.0)

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def truncate(self, rank: int) -> LowRank:
        """The change of a lower rank nearest to this one, without the dense matrix: B A = Q_b (R_b R_aᵀ) Q_aᵀ."""
        q_b, r_b = torch.linalg.qr(self.B.float())
        q_a, r_a = torch.linalg.qr(self.A.float().T)
        core = LowRank.from_matrix(self.scale * r_b @ r_a.T, rank)
        return LowRank(core.A @ q_a.T, q_b @ core.B, 1.0, self.kernel)

    def to_dense(self) -> torch.Tensor:
        return self.scale * (self.B.float() @ self.A.float())

    def to(self, *place: Any) -> LowRank:
        return replace(self, A=self.A.to(*place), B=self.B.to(*place))

    def added_output(self, x: torch.Tensor) -> torch.Tensor:
        """ΔW x: `[..., in]` → `[..., out]`."""
        return linear(linear(x, self.A), self.B) * self.scale


@dataclass(frozen=True)
class Dense:
    """ΔW as it is, `[out, in]`, for methods whose change has no low rank."""

    matrix: torch.Tensor

    def to_dense(self) -> torch.Tensor:
        return self.matrix

    def to(self, *place: Any) -> Dense:
        return Dense(self.matrix.to(*place))

    def added_output(self, x: torch.Tensor) -> torch.Tensor:
        """ΔW x: `[..., in]` → `[..., out]`."""
        return linear(x, self.matrix)


@dataclass(frozen=True)
class InputDependent:
    """A change that depends on the input and so is no matrix: the registered method `kind` and its tensors."""

    kind: str
    method: Method
    tensors: Tensors


@dataclass
class Adapter:
    """A stored adapter, valid on the original base.

    Attributes:
        deltas: {module name: low-rank change of its weight}.
        dense: {parameter name: change}, laid out like the parameter.
        own: {module name: change that depends on the input}.
        heads: {parameter name: tensor} of modules trained whole (a classifier).
        run: what is known of its making (`run.json`); {} for a folder from elsewhere.
        config: what its PEFT folder says that it changes; None if it is of no such folder.
    """

    deltas: dict[str, LowRank] = field(default_factory=dict)
    dense: dict[str, torch.Tensor] = field(default_factory=dict)
    own: dict[str, InputDependent] = field(default_factory=dict)
    heads: dict[str, torch.Tensor] = field(default_factory=dict)
    run: dict = field(default_factory=dict)
    config: LoraConfig | None = None

    @property
    def parameters(self) -> int:
        """Numbers that are stored."""
        pairs = [tensor for delta in self.deltas.values() for tensor in (delta.A, delta.B)]
        own = [tensor for part in self.own.values() for tensor in part.tensors.values()]
        return sum(tensor.numel() for tensor in [*pairs, *own, *self.dense.values(), *self.heads.values()])


def check_low_rank(where: Path | str, adapter: Adapter, what: str = "the change is not low-rank") -> None:
    """Raises:
    InputError: the adapter has changes without a low rank, which cannot be stacked or merged.
    """
    if other := [*adapter.dense, *adapter.own]:
        fix = "set `export_rank` where there is one"
        raise InputError(where, what, other[0], "LoRA-like experts", fix)


def truncate_adapter(adapter: Adapter, layers: dict[str, bool], rank: int) -> tuple[Adapter, float]:
    """The adapter with dense changes of linear layers cut to `rank`, so that it can be mixed and read by PEFT.

    Args:
        layers: {linear layer: whether it stores its weight as `[in, out]`}. Other dense changes are dropped.

    Returns:
        The adapter, and the share (0 to 1) of the norm of all dense changes that is lost.
    """
    deltas, lost, total = dict(adapter.deltas), 0.0, 0.0
    for name, change in adapter.dense.items():
        total += float(change.double().square().sum())
        module = name.removesuffix(".weight")
        if module not in layers:
            lost += float(change.double().square().sum())
            continue
        matrix = change.T if layers[module] else change
        deltas[module] = LowRank.from_matrix(matrix, rank)
        lost += float((matrix - deltas[module].to_dense()).double().square().sum())
    return replace(adapter, deltas=deltas, dense={}), sqrt(lost / total) if total else 0.0


def save_adapter(folder: Path | str, adapter: Adapter, *, causal: bool, transposed: bool = False) -> None:
    """Writes a folder, whole or not at all, same bytes for the same adapter. `PeftModel.from_pretrained` loads it if
    all changes are low-rank.

    Args:
        causal: the base is a causal language model (PEFT then wraps it as such).
        transposed: the base stores weights as `[in, out]` (GPT-2's Conv1D).
    """
    with atomic_write(folder) as aside:
        aside.mkdir(parents=True)
        if adapter.deltas:
            write_peft(aside, adapter, causal, transposed)
        heads = {} if adapter.deltas else adapter.heads
        dense = {CHANGE + name: cpu_tensor(tensor) for name, tensor in adapter.dense.items()}
        dense |= {HEAD + name: cpu_tensor(tensor) for name, tensor in heads.items()}
        if dense:
            save_file(dense, aside / DENSE, metadata={"format": "pt"})
        if adapter.own:
            save_input_dependent(aside, adapter.own)
        write_json(aside / RUN, adapter.run)


def load_adapter(folder: Path | str) -> Adapter:
    """Reads what `save_adapter` wrote, and any plain PEFT LoRA folder.

    Raises:
        InputError: nothing of this kind is there, it is damaged, a link leads out of it, or it uses something that
            this reader would get wrong.
    """
    folder = Path(folder)
    check_links(folder)
    run = read_object(folder / RUN) if (folder / RUN).is_file() else {}
    if not any((folder / name).is_file() for name in (DENSE, OWN)):
        return replace(load_peft(folder), run=run)
    adapter = replace(load_peft(folder) if (folder / CONFIG).is_file() else Adapter(), run=run)
    for name, tensor in read_tensors(folder / DENSE).items() if (folder / DENSE).is_file() else ():
        require_float(folder / DENSE, name, tensor)
        if not name.startswith((CHANGE, HEAD)):
            raise InputError(folder / DENSE, "a tensor of unknown meaning", name, f"{CHANGE}… or {HEAD}…")
        kept = adapter.heads if name.startswith(HEAD) else adapter.dense
        kept[name.removeprefix(HEAD).removeprefix(CHANGE)] = tensor
    if (folder / OWN).is_file():
        adapter.own = load_input_dependent(folder)
    return adapter


def copy_adapter(source: Path | str, folder: Path) -> None:
    """Copies a stored adapter, and nothing else that lies in its folder."""
    folder.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS, RUN, DENSE, OWN, OWN_CONFIG):
        if (path := Path(source, name)).is_file():
            copyfile(path, folder / name)


def save_input_dependent(folder: Path, own: dict[str, InputDependent]) -> None:
    tensors = {f"{name}/{key}": cpu_tensor(t) for name, part in own.items() for key, t in part.tensors.items()}
    save_file(tensors, folder / OWN, metadata={"format": "pt"})
    described = {name: {"kind": part.kind, "options": plain_options(part)} for name, part in own.items()}
    write_json(folder / OWN_CONFIG, described)


def plain_options(part: InputDependent) -> dict[str, Any]:
    fields = set(registry.load_module("method", part.kind).Method.model_fields)
    return part.method.model_dump(mode="json", include=fields)


def load_input_dependent(folder: Path) -> dict[str, InputDependent]:
    tensors, own, where = read_tensors(folder / OWN), {}, folder / OWN_CONFIG
    for name, described in read_object(where).items():
        if not isinstance(described, dict):
            raise InputError(f"{where}:{name}", "not a method", described, "`kind` and `options`")
        method = open_options(f"{where}:{name}", "method", described.get("kind"), described.get("options"))
        keys = [key for key in tensors if key.startswith(f"{name}/")]
        own[name] = InputDependent(
            described["kind"], method, {k.removeprefix(f"{name}/"): tensors.pop(k) for k in keys}
        )
    if tensors:
        raise InputError(folder / OWN, "a tensor of no method", next(iter(tensors)), f"names of {OWN_CONFIG}")
    return own


def write_peft(folder: Path, adapter: Adapter, causal: bool, transposed: bool) -> None:
    """The low-rank changes and the heads, as PEFT reads them."""
    deltas = dict(sorted(adapter.deltas.items()))
    ranks = [delta.rank for delta in deltas.values()]
    alphas = [delta.scale * delta.rank for delta in deltas.values()]
    rank, alpha = max(set(ranks), key=ranks.count), max(set(alphas), key=alphas.count)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": adapter.run.get("base"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: d.rank for name, d in deltas.items() if d.rank != rank},
        "alpha_pattern": {name: a for name, a in zip(deltas, alphas) if a != alpha},
        "target_modules": list(deltas),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.heads}) or None,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
    }
    tensors = {}
    for name, delta in deltas.items():
        a, b = delta.A, delta.B
        if delta.kernel > 1:  # PEFT's are convolutions too: A of the layer's kernel, B of 1
            a, b = a.unflatten(1, (-1, delta.kernel)), b[..., None]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = cpu_tensor(a)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = cpu_tensor(b)
    tensors |= {PREFIX + name: cpu_tensor(tensor) for name, tensor in adapter.heads.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def cpu_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def load_peft(folder: Path) -> Adapter:
    """Reads any plain PEFT LoRA folder: ranks and alphas per module, rsLoRA, modules trained whole.

    Raises:
        InputError: the folder is not a LoRA, is damaged or incomplete, or uses something this reader would get wrong.
    """
    require_files(folder)
    config, where = read_lora_config(read_object(folder / CONFIG), folder / CONFIG), folder / WEIGHTS
    factors: dict[str, dict[str, torch.Tensor]] = {}
    adapter = Adapter(config=config)
    for key, tensor in sorted(read_tensors(where).items()):
        require_float(where, key, tensor)
        name = key.removeprefix(PREFIX)
        module, _, part = name.rpartition(".lora_")
        if name == key or len(name) > LONGEST_NAME:
            raise InputError(where, "not the name of a layer's tensor", key, f"{PREFIX}… of {LONGEST_NAME} letters")
        if part in FACTORS:
            factors.setdefault(module, {})[FACTORS[part]] = tensor
        elif config.is_saved(name):
            adapter.heads[name] = tensor
        else:
            raise InputError(where, "a tensor that is neither lora_A, lora_B nor a saved module", name)
    if not factors:
        raise InputError(where, "no lora_A and no lora_B", expected="an adapter that changes a layer")
    adapter.deltas = {module: low_rank_change(where, config, module, pair) for module, pair in factors.items()}
    return adapter


def require_files(folder: Path) -> None:
    """Raises:
    InputError: the config or the weights are missing, or the weights are there as a pickle alone.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
            if name == WEIGHTS and pickles:
                what, fix = "the weights are pickled, and a pickle can run code", "save it anew with a newer PEFT"
                raise InputError(folder / pickles[0], what, None, WEIGHTS, fix, "pickle")
            raise InputError(folder, f"no {name}", expected="a PEFT LoRA folder with safetensors weights")


def low_rank_change(where: Path, config: LoraConfig, module: str, factors: dict[str, torch.Tensor]) -> LowRank:
    """Raises:
    InputError: the pair is not whole, not of the rank that the config says, or not of a layer that it names.
    """
    for one, other in ("AB", "BA"):
        if one not in factors:
            raise InputError(where, f"lora_{other} without its lora_{one}", module, "both", "save the adapter anew")
    a, b, rank = factors["A"], factors["B"], config.rank(module)
    if not config.is_target(module):
        raise InputError(where, f"a layer that {CONFIG} does not name", module, "one of its `target_modules`")
    kernel = a.shape[2] if a.dim() == 3 and b.dim() == 3 and b.shape[2] == 1 else 1
    if kernel > 1:
        a, b = a.flatten(1), b.flatten(1)
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
        shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
        raise InputError(f"{where}:{module}", "wrong rank", shapes, f"rank {rank}, as {CONFIG} says")
    scale = config.scale(module)
    if not (b.float() * scale).isfinite().all():
        raise InputError(f"{where}:{module}", "the scale is too large", f"{scale:g}", "alpha over the rank")
    return LowRank(a, b, scale, kernel)
