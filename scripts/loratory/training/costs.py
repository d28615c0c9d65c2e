"""What a training costs besides its steps' seconds: positions, floating-point operations, peak memory.

Operations are counted once, by PyTorch's own counter, over the forward and backward pass of the first micro-batch, and
taken as proportional to positions (padding included) for all others and for every pass that a method makes besides its
steps. That leaves out: that attention grows faster than length, what the optimizer computes, and decompositions of
weights before the first step. The count is taken when the run is over and its outcome is kept, in the state that the
last step left: so it can change no result, and it counts only the weights that the method has switched on by then.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from loratory.training.encoding import padded_positions
from loratory.training.session import AdapterSession
from loratory.training.sharding import held_bytes


def total_flops(session: AdapterSession, positions: int) -> float | None:
    """Floating-point operations of the whole run: of its steps, and of the passes besides them.

    None where PyTorch's counter does not know an operation, as all of a base in int8: no such figure is worth a
    training that is over.

    Args:
        positions: that its steps put through the model.
    """
    if any(layer.base.weight.dtype == torch.int8 for layer in session.layers.values()):
        return None
    try:
        first = first_batch_flops(session) / padded_positions(session.read_step(0)[0][1])
    except AssertionError as error:  # how the counter refuses shapes; before 2.13 those of grouped-query attention
        print(f"operations are not counted: {error}", flush=True)
        return None
    return first * (positions + session.positions)


def first_batch_flops(session: AdapterSession) -> int:
    """Of one forward and backward pass over the first micro-batch, as the training runs it."""
    (number, items), *_ = session.read_step(0)
    base, batch = session.base, session.make_batch(items, number)
    half = session.recipe.precision == "bf16"
    base.model.train()
    try:
        with FlopCounterMode(display=False) as counter:
            with torch.autocast(next(base.model.parameters()).device.type, torch.bfloat16, enabled=half):
                total, _ = base.loss(base.model, batch)
            total.backward()
    finally:
        base.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


class PeakMemory:
    """The peak of one run on a GPU, in bytes: the bare base, and what the run came to need beside it.

    Outcomes of earlier runs that are still held are not counted. On a CPU a process only knows the peak of its whole
    life, which all its runs share: there it is None.
    """

    def __init__(self, model: torch.nn.Module):
        self.device = next(model.parameters()).device
        self.base = sum(map(held_bytes, model.parameters()))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.held = torch.cuda.memory_allocated(self.device)

    def peak_bytes(self) -> int | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) - self.held + self.base
