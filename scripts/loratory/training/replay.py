"""Passes of micro-batches replayed as CUDA graphs: a GPU is done with the kernels of a small model before Python has
issued them.

A micro-batch of one of few shapes (`Base.fixed_batch`) is passed as ever when its shape is met first. When it is met
again, its forward and backward pass are captured, and from then on replayed. What a graph reads and adds to stays in
place: its batch, the parameters, the sums of their gradients. What is done around passes (clipping, the optimizer, a
method's hooks, other trainings) is as ever.

A pass runs the same kernels on the same numbers whether it is replayed or not, so a training that goes on after a
kill, and captures anew, ends as one that was never killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from loratory.bases.blocks import transformer_blocks
from loratory.bases.precision import is_packed
from loratory.training.processes import process_count

if TYPE_CHECKING:
    from accelerate import Accelerator

    from loratory.bases.core import Base, Batch
    from loratory.training.fit import Loss, MicroBatch
    from loratory.training.schedule import Schedule

GRAPHS = 48  # of a training; each takes some megabytes besides the activations, whose memory they share
ROOM = 3  # times the activations of a pass: of the graphs, of a pass beside them, and as much to spare
LAUNCH_BOUND = {
    "fp32": 1e12,
    "bf16": 1e13,
}  # weights times positions of a pass: beyond, kernels outlast their launches


def may_replay(model: torch.nn.Module, replayable: bool, recipe: Schedule) -> bool:
    """Whether the steps of a training are replayed where shapes recur: it is on a GPU, gains by it, and nothing of it
    is decided anew in each pass outside of tensors.

    Args:
        replayable: as the method or the mixer says.
    """
    parameters = [*model.parameters()]
    bf16 = recipe.precision == "bf16" or parameters[0].dtype == torch.bfloat16
    work = sum(parameter.numel() for parameter in parameters) * recipe.pass_tokens
    return (
        replayable
        and is_accelerated(parameters[0].device)
        and process_count() == 1
        and work <= LAUNCH_BOUND["bf16" if bf16 else "fp32"]
        and not any(block.gradient_checkpointing for block in transformer_blocks(model))
        and not any(map(is_packed, model.modules()))
        and not getattr(getattr(model, "config", None), "layerdrop", 0)  # drawn on the host
    )


def is_accelerated(device: torch.device) -> bool:
    return device.type == "cuda"


def fix_shape(base: Base, micro: MicroBatch, recipe: Schedule) -> MicroBatch:
    """The same micro-batch in one of few shapes, if the family has such for it."""
    fixed = base.fixed_batch(micro.batch, recipe.pass_tokens)
    return micro if fixed is None else replace(micro, batch=fixed, positions=fixed["ids"].numel(), is_fixed=True)


class Kernels(Protocol):
    """What was captured."""

    def replay(self) -> None: ...

    def reset(self) -> None:
        """Gives its memory back."""


@dataclass(frozen=True)
class Pass:
    """A captured pass.

    Attributes:
        batch: what its kernels read, to be filled in place. learnt: places of the parameters that get a gradient.
    """

    kernels: Kernels
    batch: Batch
    learnt: frozenset[int]


class Replays:
    """The passes of one training's fixed micro-batches, and of those beside them in a step.

    Gradients are summed here in tensors that stay; `give_gradients` hands them to the parameters.

    Args:
        loss: of a micro-batch; of a fixed one it must ask the device for nothing.
    """

    share: torch.Tensor
    value: torch.Tensor
    sums: list[torch.Tensor]

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        loss: Callable[[MicroBatch], Loss],
        accelerator: Accelerator,
        title: str,
    ) -> None:
        self.parameters, self.loss, self.accelerator, self.title = [*parameters], loss, accelerator, title
        self.device = self.parameters[0].device
        self.captures = True
        self.met: dict[tuple, Pass | None] = {}  # by shape; None: once
        self.learnt: set[int] = set()  # of the step
        self.stream = self.pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives back the memory of all graphs."""
        for own in self.met.values():
            if own is not None:
                own.kernels.reset()
        self.met.clear()

    def begin_step(self) -> None:
        if not hasattr(self, "sums"):
            self.sums = [torch.zeros_like(parameter) for parameter in self.parameters]
            self.share, self.value = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
            if self.device.type == "cuda":
                self.stream = torch.cuda.Stream(self.device)
                self.pool = torch.cuda.graph_pool_handle()
        torch._foreach_zero_(self.sums)
        self.learnt = set()

    def add_pass(self, micro: MicroBatch, parts: int) -> torch.Tensor:
        """Adds the gradients of a micro-batch's loss, divided by `parts`; returns that part of the loss."""
        self.share.fill_(1 / parts)
        with self.beside():
            self.learnt |= self.replay_or_run(micro)
        return self.value.clone()

    def give_gradients(self) -> None:
        for place in self.learnt:
            self.parameters[place].grad = self.sums[place]

    @contextmanager
    def beside(self) -> Iterator[None]:
        """On a stream of its own, as a capture demands; the backward pass of a parameter stays on the stream that it
        was on first, so all passes go there."""
        if self.stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            yield
        outside.wait_stream(self.stream)

    def replay_or_run(self, micro: MicroBatch) -> frozenset[int]:
        """Returns: the places of the parameters that have got a gradient."""
        if not (micro.is_fixed and self.captures):
            return self.run_or_make_room(micro)
        key = (micro.task, *((name, tensor.shape, tensor.dtype) for name, tensor in micro.batch.items()))
        if key not in self.met:
            with HostReads() as reads:
                learnt = self.run_or_make_room(micro)
            if reads.first:
                self.stop_captures(f"{reads.first} needs the host")
            self.met[key] = None
            return learnt
        own = self.met[key]
        if own is None and self.may_capture():
            own = self.met[key] = self.capture_pass(micro)
        if own is None:
            return self.run_or_make_room(micro)
        for name, tensor in own.batch.items():
            tensor.copy_(micro.batch[name])
        own.kernels.replay()
        return own.learnt

    def may_capture(self) -> bool:
        """Whether one more graph leaves room for passes that are not replayed."""
        if sum(own is not None for own in self.met.values()) >= GRAPHS:
            return False
        if self.device.type != "cuda":
            return True
        held, peak = torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - held
        return free >= ROOM * (peak - held)

    def capture_pass(self, micro: MicroBatch) -> Pass | None:
        held = replace(micro, batch={name: tensor.clone() for name, tensor in micro.batch.items()})
        learnt: set[int] = set()
        try:
            kernels = record_kernels(lambda: learnt.update(self.run_pass(held)), self.pool, self.stream)
        except RuntimeError as error:
            self.stop_captures(str(error).splitlines()[0])
            self.drop_gradients()
            forget_capture(self.device)
            return None
        return Pass(kernels, held.batch, frozenset(learnt))

    def stop_captures(self, reason: str) -> None:
        print(f"{self.title}: steps are not replayed: {reason}", flush=True)
        self.captures = False
        self.release()

    def run_or_make_room(self, micro: MicroBatch) -> frozenset[int]:
        """`run_pass`, and once more without any graph if these have taken the memory that it needs."""
        drawing = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        try:
            return self.run_pass(micro)
        except torch.OutOfMemoryError:
            if not any(self.met.values()):
                raise
        self.stop_captures("their memory is needed")
        self.drop_gradients()
        torch.cuda.empty_cache()
        if drawing is not None:
            torch.cuda.set_rng_state(drawing, self.device)
        return self.run_pass(micro)

    def run_pass(self, micro: MicroBatch) -> frozenset[int]:
        """Forward, backward, and the gradients' sums; leaves the part of the loss in `value`."""
        with unpacked_rows(), self.accelerator.autocast():
            total, _, extra = self.loss(micro)
        self.accelerator.backward((total + extra) * self.share)
        learnt = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        gradients: Any = [self.parameters[place].grad for place in learnt]
        torch._foreach_add_([self.sums[place] for place in learnt], gradients)
        self.value.copy_(total.detach() * self.share)
        self.drop_gradients()
        return frozenset(learnt)

    def drop_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def record_kernels(run: Callable[[], object], pool: Any, stream: torch.cuda.Stream | None) -> Kernels:
    """What `run` asks of the GPU, which does none of it yet. Other threads may go on using the GPU."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        run()
    return graph


def forget_capture(device: torch.device) -> None:
    """After one that failed: the generator would wait for its end for ever."""
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index or 0]
        generator.graphsafe_set_state(generator.clone_state())


class HostReads(TorchDispatchMode):
    """Inside, notes the first operation that makes the host wait for numbers of a device, which no graph can hold.

    Attributes:
        first: its name; empty: there was none.
    """

    READS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    )

    first = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, found = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        moves = name in ("_to_copy", "copy_") and len({tensor.device.type for tensor in (found, *args[:2])}) > 1
        if name in self.READS or moves or any(index is not None and index.dtype == torch.bool for index in indices):
            self.first = self.first or f"`{name}`"
        return found


@contextmanager
def unpacked_rows() -> Iterator[None]:
    """Inside, transformers takes each row for one text, as it is, and need not ask the device for it. While kernels
    are captured it would take rows for several, with masks that are slow."""
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before
