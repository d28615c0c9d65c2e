"""What the tests of all methods must know of one: a `ROW` in `test_{method}.py`."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A method as the matrix runs it.

    Attributes:
        options: hyper-parameters, small enough for layers of 16 to 48 features.
        trained: ((out, in) of every adapted layer, model) -> numbers that are trained at the start, without heads.
        starts: whether the model with the fresh adapter is "equal" to the base, "near" it (1e-3 of its outputs) or
            "elsewhere", by design.
        merges: whether it amounts to a change of the weights.
        rate: a learning rate at which it learns.
        families: of bases that it can train; the first where one is enough.
    """

    options: dict
    trained: Callable
    starts: str = "equal"
    merges: bool = True
    rate: float = 1e-2
    families: tuple[str, ...] = ("llama", "gpt2", "phi3", "bert", "whisper")
