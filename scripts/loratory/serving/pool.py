"""One pool of memory for adapters and for keys and values, in pages of one size (S-LoRA's unified paging).

What is of many sizes and lives for unequal times would leave holes; pages of one size leave none. A page is a vector
as wide as a token's keys in a layer; a wider vector takes several.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from loratory.errors import InputError


class PagePool:
    """Vectors `[pages, width]`, each of one owner at a time; page 0 is nobody's and stays zero.

    Attributes:
        owned: {owner: its pages}. free: pages that nobody owns.
    """

    def __init__(self, pages: int, width: int, like: torch.Tensor):
        self.vectors = like.new_zeros(pages + 1, width)
        self.free = list(range(pages, 0, -1))
        self.owned: dict[Hashable, list[int]] = {}

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def pages(self) -> int:
        """Of all owners and of none."""
        return len(self.vectors) - 1

    def pages_per_vector(self, size: int) -> int:
        return -(-size // self.width)

    def allocate(self, owner: Hashable, count: int) -> torch.Tensor:
        """`[count]` pages, which are the owner's from here on, besides those that it has.

        Raises:
            InputError: so many are not free.
        """
        if count > len(self.free):
            what, fix = "the pool is full", "serve fewer requests at once, or give it more pages"
            raise InputError(f"pool: {owner}", what, f"{count} pages", f"at most {len(self.free)}", fix, "pool_full")
        first = len(self.free) - count
        found, self.free = self.free[first:], self.free[:first]
        self.owned.setdefault(owner, []).extend(found)
        return torch.tensor(found, dtype=torch.long, device=self.vectors.device)

    def release(self, owner: Hashable) -> None:
        """All of an owner's pages are free again; nothing happens if it has none."""
        self.free += self.owned.pop(owner, [])

    def write(self, places: torch.Tensor, vectors: torch.Tensor) -> None:
        """Vectors `[n, size]` at `[n, pages per vector]`; what is left of a vector's last page becomes zero."""
        room = places.shape[-1] * self.width - vectors.shape[-1]
        padded = torch.nn.functional.pad(vectors, (0, room))
        self.vectors[places] = padded.unflatten(-1, (places.shape[-1], self.width)).to(self.vectors.dtype)

    def read(self, places: torch.Tensor, size: int) -> torch.Tensor:
        """Vectors `[…, size]` of places `[…, pages per vector]`."""
        return self.vectors[places].flatten(-2)[..., :size]
