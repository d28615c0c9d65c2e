"""FFA-LoRA: LoRA with a frozen random A (Sun et al. 2024, arXiv:2403.12313), the part of one client.

y = W x + s · B A x with A `[rank, in]` ~ U(±1/√in) fixed and B `[out, rank]` = 0 trained. A depends on the seed and
the layer alone, so trainings with the same seed share it, and Σ w_k (B_k A) = (Σ w_k B_k) A: averaging their B is
averaging their updates. The federated loop and its differential privacy are not part of the method.
"""

from __future__ import annotations

from typing import ClassVar

from loratory.adapters.methods import lora


class Method(lora.Method):
    """y = W x + s · B A x with a fixed random A, the same for all trainings with one seed; only B is trained."""

    fixed: ClassVar[frozenset[str]] = frozenset({"A"})
    # No option here: it compares B's rate with that of A, which has none.
    lr_ratio: ClassVar[float] = 1.0  # type: ignore[misc]
