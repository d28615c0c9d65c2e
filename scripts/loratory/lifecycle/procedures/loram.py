"""LoRAM: a LoRA learns on a cut copy of the base, and works on the whole one (arXiv:2502.13533).

The copy is cut by heads and channels, at random or by magnitude, and so is smaller; or it has zeros instead, in two of
every four weights (semi) or in a share of each layer's (unstructured), which dense kernels save nothing by. What A
and B learnt on rows and columns that stayed is scattered back to them, and the rest of A and B is 0:
y = (W + s B A) x with the whole W. Nothing fills the dropped columns of A.

Project interpretation: of a copy with zeros the whole B A is kept, as nothing of it was cut; `pruned_lora` is the
structured copy with its LoRA, and shows what the whole base adds. The published alignment of cut bases is left out.
QLoRAM (`nf4`) packs the structured copy in 4 bits; what it learnt works on the whole base as it is.

Memory is the peak of a training on a GPU, and none on a CPU: that of the copy and what learning needs beside it. The
whole base waits beside the copy here, for its other arms, and is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from loratory.lifecycle import contract
from loratory.lifecycle.contract import Arm

if TYPE_CHECKING:
    from loratory.config import StageEntry
    from loratory.lifecycle.room import Room


class Procedure(contract.Procedure):
    """A LoRA of a cut copy on the whole base: ways of cutting, beside a LoRA of the whole and the copy's own."""

    share: float = Field(
        0.5, ge=0, lt=1, description="of the heads and channels, or of the weights (unstructured), that are cut"
    )
    nf4: bool = Field(False, description="QLoRAM too: the structured copy in 4 bits, which needs bitsandbytes")

    def iterate_arms(self, entry: StageEntry, room: Room) -> Iterator[Arm]:
        from loratory.adapters import core
        from loratory.bases.precision import pack_layers, require_packing
        from loratory.lifecycle import cutting, pruning

        if self.nf4:
            require_packing(f"lifecycle.{room.name}.nf4", "a copy in 4 bits")
        base, domains = room.base, entry.domains
        parts = cutting.find_parts(base.model, base.folder)
        names = core.target_layers(base.model, room.method.target_modules, base.heads)
        cutting.check_fours(base.model, names, base.folder)
        everything = cutting.all_units(parts)
        largest = cutting.largest_units(base.model, parts, self.share)
        copies = {
            "structured": (largest, None),
            "random": (cutting.random_units(parts, self.share, room.seed), None),
            "semi": (everything, cutting.two_of_four),
            "unstructured": (everything, lambda weight: cutting.largest_share(weight, 1 - self.share)),
        } | ({"structured_nf4": (largest, None)} if self.nf4 else {})
        yield Arm("base", base, base.model, kind="base")
        yield from pruning.MeasuredTraining("lora", room, domains).iterate_arms()
        for kind, (kept, choose) in copies.items():
            small = cutting.slice_base(base, parts, kept)
            if choose is not None:
                cutting.zero_weights(small.model, names, choose)
            if kind == "structured_nf4":
                pack_layers(small.model)
            training = pruning.MeasuredTraining(f"pruned_{kind}", replace(room, base=small), domains)
            for arm in training.iterate_arms():
                if kind == "structured":
                    yield replace(arm, name="pruned_lora", stored=False)
                learnt = core.export(small.model, base.heads, {})
                with pruning.wear_adapter(room, cutting.scatter_adapter(learnt, base.model, parts, kept)):
                    yield Arm(f"recovered_{kind}", base, base.model, measures=arm.measures, stored=True)
