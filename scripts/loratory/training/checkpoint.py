"""Exact resume: everything a run needs to go on, in one safetensors file that is replaced whole.

A file says what it was made with and holds a checksum of all its bytes: no run goes on from one that differs in
either.
The file before the last is kept, so that a damaged one costs no more than the steps between two saves.
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loratory.data.files import BLOCK, atomic_write
from loratory.errors import short_value

NAME, BEFORE = "checkpoint.safetensors", "checkpoint.before.safetensors"
# The one entry of a sealed file's metadata (of several the order is random): 64 digits of its checksum, a blank, JSON.
BEST = "best/"  # before the names of the best step's tensors
SEAL, BLANK = "sealed", "0" * 64
LONGEST_HEADER = 100_000_000  # bytes; safetensors reads no longer one
SHOWN = 3  # most differences that a line names


def facts_digest(**facts: Any) -> str:
    """A short digest of everything that a run's outcome depends on."""
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def save_sealed(tensors: dict[str, torch.Tensor], path: Path, **facts: Any) -> None:
    """Writes tensors and `facts` (values of JSON; others as text) as safetensors with a checksum of the whole file."""
    sealed = f"{BLANK} {json.dumps(facts, sort_keys=True, default=str)}"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {SEAL: sealed})
    place, _, checksum = read_seal(path)
    with open(path, "r+b") as stream:
        stream.seek(place)
        stream.write(checksum.encode())


def read_seal(path: Path) -> tuple[int, str, str]:
    """Where a file holds its checksum, which one it holds, and which it should: that of the file with a blank one.

    Of what is no sealed file any more, these are no checksum and another one.
    """
    mark = f'"{SEAL}":"'.encode()
    with open(path, "rb") as stream:
        head = stream.read(8)
        head += stream.read(min(int.from_bytes(head, "little"), LONGEST_HEADER))
        start = head.find(mark) + len(mark)
        stop = start + len(BLANK)
        digest = sha256(head[:start] + BLANK.encode() + head[stop:])
        while block := stream.read(BLOCK):
            digest.update(block)
    return start, head[start:stop].decode("latin-1"), digest.hexdigest()


def read_facts(path: Path) -> dict[str, Any]:
    """What was given to `save_sealed` with the tensors of an undamaged file."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[SEAL][len(BLANK) :])


def refusal_reason(path: Path, made_with: Mapping[str, Any]) -> str:
    """Why nothing may go on from a sealed file; "" if it may.

    Args:
        made_with: what the file must have been made with, to the last detail.
    """
    _, held, expected = read_seal(path)
    if held != expected:
        return "is damaged: its checksum is not that of its content"
    before, now = (dict(flat_items(facts)) for facts in (read_facts(path)["made_with"], json_values(made_with)))
    changes = [
        f"{name} ({short_value(before.get(name))} → {short_value(now.get(name))})"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    others = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return f"was made with other {', '.join(changes[:SHOWN])}{others}" if changes else ""


def json_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they are read back from a file."""
    return json.loads(json.dumps(facts, default=str))


def flat_items(facts: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested dicts."""
    if not isinstance(facts, dict):
        yield name, facts
        return
    for key, value in facts.items():
        yield from flat_items(value, f"{name}.{key}" if name else key)


def save_checkpoint(
    folder: Path | str,
    step: int,
    curve: list[dict],
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: dict[str, torch.Tensor],
    made_with: Mapping[str, Any] | None = None,
    best: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """`step` steps are done. Stores parameters, the optimizer's moments, other memory and the curve so far.

    Args:
        best: tensors of the best step so far.
        made_with: what the run depends on, in values of JSON: only a run with the same goes on from here.
    """
    tensors = {f"memory/{name}": tensor for name, tensor in memory.items()}
    tensors |= {f"parameter/{name}": p for name, p in parameters.items()}
    tensors |= {f"{BEST}{name}": tensor for name, tensor in (best or {}).items()}
    for name, p in parameters.items():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"state/{name}/{key}"] = torch.as_tensor(value).detach().cpu().clone()
    path = Path(folder) / NAME
    with atomic_write(path) as aside:
        save_sealed(tensors, aside, step=step, curve=curve, made_with=made_with or {})
        if path.is_file():
            path.replace(path.with_name(BEFORE))


def load_checkpoint(
    folder: Path | str,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: dict[str, torch.Tensor],
    made_with: Mapping[str, Any] | None = None,
    best: dict[str, torch.Tensor] | None = None,
) -> tuple[int, list[dict]]:
    """Puts a saved run back in place; returns (steps done, curve). (0, []) where no usable one was saved.

    Args:
        best: is filled with what was saved as such.

    A checkpoint that is damaged or was made with something else is put aside, and the log says so in one line.
    """
    refused: list[str] = []
    for path in (Path(folder) / NAME, Path(folder) / BEFORE):
        if not path.is_file():
            continue
        if reason := refusal_reason(path, made_with or {}):
            path.replace(path.with_name(f"{path.name}.refused"))
            refused.append(f"{path} {reason}")
            continue
        facts = restore_run(path, parameters, optimizer, memory, {} if best is None else best)
        if refused:
            begin = f"goes on from {path.name}, after step {facts['step']}"
            print(f"{refused[0]}; put aside: training {begin}", flush=True)
        return facts["step"], facts["curve"]
    if refused:
        print(f"{refused[0]}; put aside: training begins anew", flush=True)
    return 0, []


def restore_run(
    path: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: dict[str, torch.Tensor],
    best: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """Fills everything from a checkpoint; returns the facts that it holds."""
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        best |= {key.removeprefix(BEST): file.get_tensor(key) for key in keys if key.startswith(BEST)}
        for name, tensor in memory.items():
            tensor.data.copy_(file.get_tensor(f"memory/{name}"))
        for name, p in parameters.items():
            p.data.copy_(file.get_tensor(f"parameter/{name}"))
            prefix = f"state/{name}/"
            state = {key.removeprefix(prefix): file.get_tensor(key) for key in keys if key.startswith(prefix)}
            if state:
                optimizer.state[p] = {k: v.to(p.device) if v.dim() else v for k, v in state.items()}
    return read_facts(path)
