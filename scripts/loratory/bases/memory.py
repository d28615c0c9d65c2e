"""Whether a base fits into what a device has free, before any of it is read. Imported for forecasts: nothing heavy."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

SMALL = 10_000_000  # numbers: a base of fewer fits anywhere, and its jobs take seconds
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5}  # of a number
BLOCK, SCALES = 64, 256  # numbers with a scale of their own in NF4, of a byte; scales that share one of float32
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def stored_parameters(folder: Path | str) -> int:
    """Numbers in the safetensors files of a folder, by their headers."""
    return sum(map(count_file_parameters, Path(folder).rglob("*.safetensors")))


def count_file_parameters(path: Path) -> int:
    """By the file's header; 0 where it has none, which is an error once the base is opened."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, path.stat().st_size)))
            return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (ValueError, AttributeError, LookupError, TypeError):
            return 0


def packed_bytes(shape: tuple[int, ...], precision: str) -> int:
    """Of a linear layer's weight `[out, in]` in int8 or nf4, with its scales."""
    out, inner = shape
    if precision == "int8":
        return out * inner + 4 * out
    blocks = -(-out * inner // BLOCK)
    return out * inner // 2 + blocks + 4 * -(-blocks // SCALES)


def free_bytes(device: torch.device | str) -> int:
    """What a GPU has free; on a CPU, what the machine has available, or its container may still take."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limits = [Path(path).read_text().strip() for path in CGROUPS if Path(path).is_file()]
    return min([available, *(int(limit) for limit in limits if limit.isdecimal())])


def require_room(folder: Path | str, precision: str, device: torch.device | str) -> None:
    """Raises:
    InputError: the weights alone are more than the device has free.
    """
    numbers = stored_parameters(folder)
    needed = int(numbers * BYTES[precision])
    if numbers > SMALL and needed > (free := free_bytes(device)):
        what, fix = f"its weights in {precision} take at least {in_gb(needed)}", "take `precision: bf16`, int8 or nf4"
        raise InputError(folder, what, f"{in_gb(free)} free on {device}", fix=fix, reason="memory")


def in_gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
