"""One pool of memory for adapters and for keys and values, in pages of one size (S-LoRA's unified paging).

What is of many sizes and lives for unequal times would leave holes; pages of one size leave none. A page is a vector
as wide as a token's keys in a layer; a wider vector takes several.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loratory.errors import InputError


@dataclass(frozen=True)
class Pages:
    """Where vectors lie that belong to places in a set of adapters.

    Attributes:
        vectors: `[pages, width]`, of which the first is zero. table: `[places, rank, pages per vector]` int32: the
            page of each part of a vector; those of one place are next to each other. size: of a vector.
    """

    vectors: torch.Tensor
    table: torch.Tensor
    size: int

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    def read(self, places: int | torch.Tensor) -> torch.Tensor:
        """Vectors `[…, rank, size]` of places `[…]`."""
        return self.vectors[self.table[places]].flatten(-2)[..., : self.size]


class PagePool:
    """Vectors `[pages, width]`, each of one owner at a time; page 0 is nobody's and stays zero.

    Attributes:
        owned: {owner: its pages}.
    """

    def __init__(self, pages: int, width: int, like: torch.Tensor):
        self.vectors = like.new_zeros(pages + 1, width)
        self.stack, self.left = np.arange(pages, 0, -1, dtype=np.int32), pages
        self.owned: dict[Hashable, list[int]] = {}

    @property
    def free(self) -> np.ndarray:
        """Pages that nobody owns."""
        return self.stack[: self.left]

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def pages(self) -> int:
        """Of all owners and of none."""
        return len(self.stack)

    def pages_per_vector(self, size: int) -> int:
        return -(-size // self.width)

    def allocate(self, owner: Hashable, count: int) -> torch.Tensor:
        """`[count]` pages, on the host, which are the owner's from here on, besides those that it has.

        Raises:
            InputError: as `allocate_each`.
        """
        return torch.from_numpy(self.allocate_each([owner], count)[0].astype(np.int64))

    def allocate_each(self, owners: Sequence[Hashable], count: int) -> np.ndarray:
        """`[owners, count]` pages, of each owner its own.

        Raises:
            InputError: so many are not free.
        """
        total = len(owners) * count
        if total > self.left:
            what, fix = "the pool is full", "serve fewer requests at once, or give it more pages"
            raise InputError(f"pool: {owners[0]}", what, f"{total} pages", f"at most {self.left}", fix, "pool_full")
        self.left -= total
        found = self.stack[self.left : self.left + total].reshape(len(owners), count).copy()
        for owner, pages in zip(owners, found.tolist()):
            self.owned.setdefault(owner, []).extend(pages)
        return found

    def release(self, owner: Hashable) -> None:
        """All of an owner's pages are free again; nothing happens if it has none."""
        pages = self.owned.pop(owner, [])
        self.stack[self.left : self.left + len(pages)] = pages
        self.left += len(pages)

    def write(self, places: torch.Tensor, vectors: torch.Tensor) -> None:
        """Vectors `[n, size]` at `[n, pages per vector]`; what is left of a vector's last page becomes zero."""
        self.vectors[places.flatten()] = self.cut_vectors(vectors)

    def read(self, places: torch.Tensor, size: int) -> torch.Tensor:
        """Vectors `[…, size]` of places `[…, pages per vector]`."""
        return self.vectors[places].flatten(-2)[..., :size]

    def cut_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors `[…, size]` as their pages `[pages, width]`."""
        room = -vectors.shape[-1] % self.width
        return torch.nn.functional.pad(vectors, (0, room)).reshape(-1, self.width).to(self.vectors.dtype)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def upload_numbers(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Several int32 arrays on the device, in one copy.

    Small arrays are NumPy's until here: PyTorch wakes its threads for some of them, which takes milliseconds.
    """
    joined = upload(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])), device)
    parts = joined.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays)]
