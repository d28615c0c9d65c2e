"""Several processes that share a training: data parallel, the same code for any number.

Each holds the adapter and its optimizer and passes its part of a step's batches. Gradients are summed once a step,
behind all micro-batches, so that every process makes the step that one alone would make with all batches. That sum of
an adapter's gradients is small, and unlike a wrapper around the model it asks nothing of a method: weights may come
and go, or stay without a gradient. `launch.run_processes` starts them; where it did not, there is one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import distributed

BUCKET = 1 << 24  # numbers that are sent at once


def process_count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_index() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the process that writes."""
    return process_index() == 0


def own_share(numbers: range) -> range:
    """Those of a step's batches that this process passes."""
    return numbers[process_index() :: process_count()]


def sum_numbers(numbers: Sequence[float]) -> list[float]:
    """The sum of each over all processes; as they are where there is one."""
    if process_count() == 1:
        return [*numbers]
    sums = torch.tensor(numbers, dtype=torch.float64, device=collective_device())
    distributed.all_reduce(sums)
    return sums.tolist()


def sum_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Sums each over all processes, in place. Which there are must not depend on what a process has read."""
    exchange_tensors(tensors, distributed.all_reduce)


def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Gives all processes what the main one holds, in place."""
    exchange_tensors(tensors, lambda flat: distributed.broadcast(flat, 0))


def number_of_main(number: float) -> float:
    """What the main process gives, for decisions that all have to take alike."""
    return sum_numbers([number if is_main_process() else 0.0])[0]


def wait_for_all() -> None:
    sum_numbers([0.0])


@contextmanager
def main_process_first() -> Iterator[None]:
    """The others wait until the main process has left the block."""
    if not is_main_process():
        wait_for_all()
    yield
    if is_main_process():
        wait_for_all()


def check_agreement(tensors: Iterable[torch.Tensor]) -> None:
    """Raises:
    RuntimeError: the processes hold unequal numbers, so that what one writes would not be what the others go on with.
    """
    if process_count() == 1:
        return
    total = torch.stack([tensor.detach().double().sum() for tensor in tensors]).sum()
    ends = torch.stack([total, -total])
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    if float(ends.sum()) > 0:  # highest - lowest
        raise RuntimeError(f"the processes of a training hold unequal parameters: they differ by {float(ends.sum())}")


def exchange_tensors(tensors: Iterable[torch.Tensor], exchange: Callable[[torch.Tensor], object]) -> None:
    if process_count() == 1:
        return
    with torch.no_grad():
        for bucket in fill_buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket]).to(collective_device())
            exchange(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
                tensor.copy_(part.view_as(tensor))


def fill_buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """In their order; those of one bucket are of one type, of about BUCKET numbers together."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def collective_device() -> torch.device:
    """Where tensors have to be to be sent."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
