"""Exact resume: everything a run needs to go on, in one safetensors file that is replaced whole."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loratory.data.files import atomic_write

NAME = "checkpoint.safetensors"


def facts_digest(**facts: Any) -> str:
    """A short digest of everything that a run's outcome depends on."""
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def save_checkpoint(
    folder: Path | str,
    step: int,
    curve: list[dict],
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: dict[str, torch.Tensor],
) -> None:
    """`step` steps are done. Stores parameters, the optimizer's moments, other memory and the curve so far."""
    tensors = {f"memory/{name}": tensor.detach().cpu().contiguous() for name, tensor in memory.items()}
    tensors |= {f"parameter/{name}": p.detach().cpu().contiguous() for name, p in parameters.items()}
    for name, p in parameters.items():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"state/{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    with atomic_write(Path(folder) / NAME) as aside:
        save_file(tensors, aside, metadata={"step": str(step), "curve": json.dumps(curve)})


def load_checkpoint(
    folder: Path | str,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: dict[str, torch.Tensor],
) -> tuple[int, list[dict]]:
    """Puts a saved run back in place; returns (steps done, curve). (0, []) where nothing was saved."""
    path = Path(folder) / NAME
    if not path.is_file():
        return 0, []
    with safe_open(path, framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
        for name, tensor in memory.items():
            tensor.data.copy_(file.get_tensor(f"memory/{name}"))
        for name, p in parameters.items():
            p.data.copy_(file.get_tensor(f"parameter/{name}"))
            prefix = f"state/{name}/"
            state = {key.removeprefix(prefix): file.get_tensor(key) for key in keys if key.startswith(prefix)}
            if state:
                optimizer.state[p] = {k: v.to(p.device) if v.dim() else v for k, v in state.items()}
    return int(metadata["step"]), json.loads(metadata["curve"])
