"""One training of one adapter, as its method sees it."""

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from loratory.adapters.contract import Method
from loratory.adapters.core import AdaptedLinear, Conv1D
from loratory.adapters.masters import round_masters
from loratory.bases.core import Base, Encoded
from loratory.data import batching
from loratory.data.clips import as_clip
from loratory.errors import InputError
from loratory.training.augmentation import Augmentation
from loratory.training.encoding import (
    Examples,
    example_lengths,
    padded_positions,
    round_examples,
    round_lengths,
    split_items,
)
from loratory.training.fit import MicroBatch, TrainingHooks, step_seed
from loratory.training.processes import own_share
from loratory.training.replay import fix_shape, may_replay
from loratory.training.schedule import Training


class AdapterSession(TrainingHooks):
    """Passes the loop's hooks on to the method, and offers the method what it needs for them.

    Attributes:
        model: the base with its adapted layers.
        layers: {name: adapted layer}; the method's `prepare_training` may take some away.
        items: the encoded training examples; of a split that is read in rounds, those of the first.
        recipe: steps, rates and weight decay of the training.
        batch: number -> that batch of the training, counted from 0 (a pure function); `recipe.batch_numbers` says
            which of them make a step.
        augmentation: how the clips of a batch are changed; None: not at all.
        optimizing: the optimizer, once the loop has asked for it.
        positions: how many positions went through the model outside the training's own steps.
    """

    optimizing: torch.optim.Optimizer

    def __init__(
        self,
        base: Base,
        method: Method,
        layers: dict[str, AdaptedLinear],
        examples: Examples,
        recipe: Training,
        seed: int,
        augmentation: Augmentation | None = None,
        sizes: MutableMapping[int, int] | None = None,
    ):
        self.base, self.method, self.layers = base, method, layers
        self.recipe, self.seed, self.augmentation = recipe, seed, augmentation
        self.items = round_examples(examples, seed, 0)
        self.batch_examples = self.draw_function(examples, sizes)
        self.positions = 0

    @property
    def model(self) -> torch.nn.Module:
        return self.base.model

    def batch_plan(self, examples: Examples, sizes: MutableMapping[int, int] | None = None) -> batching.Batches:
        """number -> indices of that batch's examples, as the training itself draws them."""
        lengths = round_lengths(examples, self.seed, self.longest_lengths)
        return batching.Batches(lengths, self.recipe.batch_tokens, self.seed, sizes)

    def draw_function(
        self, examples: Examples, sizes: MutableMapping[int, int] | None = None
    ) -> Callable[[int], list[Encoded]]:
        """number -> the examples of that batch, as they are learnt from."""
        plan = self.batch_plan(examples, sizes)

        def batch_examples(number: int) -> list[Encoded]:
            items = round_examples(examples, self.seed, plan.epoch_and_place(number)[0])
            return self.augment_items([items[i] for i in plan(number)], number)

        return batch_examples

    def batch_function(self, examples: Examples) -> Callable[[int], dict]:
        """number -> batch, over some of the examples."""
        draw = self.draw_function(examples)
        return lambda number: self.make_batch(draw(number), number)

    def batch(self, number: int) -> dict:
        return self.make_batch(self.batch_examples(number), number)

    def make_batch(self, items: list[Encoded], number: int) -> dict:
        return self.base.training_batch(items, step_seed(self.seed, number))

    def read_step(self, step: int) -> list[tuple[int, list[Encoded]]]:
        """(number of a batch, examples) of each micro-batch of a step that this process passes."""
        batches = [(number, self.batch_examples(number)) for number in own_share(self.recipe.batch_numbers(step))]
        return [(number, part) for number, items in batches for part in split_items(items, self.recipe)]

    def collate_step(self, parts: Sequence[tuple[int, list[Encoded]]]) -> list[MicroBatch]:
        """The micro-batches of what `read_step` gave."""
        batches = [(number, items, self.make_batch(items, number)) for number, items in parts]
        return [
            MicroBatch("train", batch, self.base.count_targets(batch), padded_positions(items), number)
            for number, items, batch in batches
        ]

    def collate_replayed(self, parts: Sequence[tuple[int, list[Encoded]]]) -> list[MicroBatch]:
        """As `collate_step`, in few shapes where steps are replayed; for a loss that knows `MicroBatch.is_fixed`."""
        found = self.collate_step(parts)
        return [fix_shape(self.base, micro, self.recipe) for micro in found] if self.is_replayed else found

    @cached_property
    def is_replayed(self) -> bool:
        """Whether the training's own steps are replayed where they can be."""
        return may_replay(self.model, self.method.replayable, self.recipe)

    def augment_items(self, items: list[Encoded], number: int) -> list[Encoded]:
        """The examples of a batch as they are learnt from."""
        return items if self.augmentation is None else [self.augment_item(item, number) for item in items]

    def augment_item(self, item: Encoded, number: int) -> Encoded:
        assert self.augmentation is not None
        clip, longest = as_clip(item.audio), self.base.longest_clip(item)
        change = self.augmentation.draw_change(clip, longest, self.seed, number)
        return self.base.replace_clip(item, replace(clip, change=change))

    def longest_lengths(self, items: Sequence[Encoded]) -> np.ndarray:
        """(n,) what each example costs a batch, at the slowest speed that augmentation may give it."""
        if self.augmentation is None:
            return example_lengths(items)
        return np.array([self.longest_length(item, self.augmentation) for item in items])

    def longest_length(self, item: Encoded, augmentation: Augmentation) -> int:
        clip = as_clip(item.audio)
        slowest = augmentation.slowest_change(clip, self.base.longest_clip(item))
        return self.base.replace_clip(item, replace(clip, change=slowest)).length

    def first_examples(self, count: int) -> list[Encoded]:
        """The first examples that the training sees, in its order, each once."""
        epoch = [i for batch in self.batch_plan(self.items).epoch_batches(0) for i in batch]
        return [self.items[i] for i in epoch[:count]]

    @torch.no_grad()
    def visit_inputs(self, examples: int, visit: Callable[[str, torch.Tensor], None]) -> None:
        """Calls `visit(layer, what it reads)`, float32 `[positions, in]`, for each of the training's first examples.

        One example at a time, so that no position is padding; in eval mode. Nothing is moved; the passes are counted.
        """
        training, handles = self.model.training, []
        for name, layer in self.layers.items():

            def show_inputs(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                visit(name, cast(AdaptedLinear, layer).rows_read(inputs[0]).flatten(0, -2).float())

            handles.append(layer.register_forward_pre_hook(show_inputs))
        self.model.eval()
        try:
            for item in self.first_examples(examples):
                self.loss(self.base.collate([item]))
        finally:
            self.model.train(training)
            for handle in handles:
                handle.remove()

    def count_examples(self) -> int:
        """How many examples all steps of the training read together, each as often as it is read."""
        plan, batches = self.batch_plan(self.items), self.recipe.batch_numbers(self.recipe.steps).start
        return sum(map(len, map(plan, range(batches))))

    def loss(self, batch: dict) -> torch.Tensor:
        """Mean over the batch's targets, for passes besides the training's steps; they are counted."""
        total, targets = self.base.loss(self.model, batch)
        self.positions += batch["ids"].numel()
        return total / targets

    @torch.no_grad()
    def mean_loss(self, batches: int) -> float:
        """The mean of `loss` over the first batches, without dropout; passes that are counted too."""
        training = self.model.training
        self.model.eval()
        total = sum(float(self.loss(self.batch(number))) for number in range(batches))
        self.model.train(training)
        return total / batches

    def weight_gradients(self, batches: int) -> dict[str, torch.Tensor]:
        """{layer: mean ∂loss/∂W `[out, in]`} over the first batches of the training, on the CPU in float32.

        Only one layer's gradient is held on the device at a time; nothing is moved.

        Raises:
            InputError: processes hold the weights in parts.
        """
        if any(isinstance(parameter, DTensor) for parameter in self.model.parameters()):
            what, fix = "the method starts from gradients of whole weights", "leave `training.sharding` out"
            raise InputError(type(self.model).__name__, what, "fsdp", "sharding: none", fix)
        sums = {name: torch.zeros(layer.weight.shape) for name, layer in self.layers.items()}
        with self.collect_gradients(sums):
            for number in range(batches):
                self.loss(self.batch(number)).backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        return {name: total / batches for name, total in sums.items()}

    @contextmanager
    def collect_gradients(self, sums: dict[str, torch.Tensor]) -> Iterator[None]:
        """Adds each adapted weight's gradient to `sums` as soon as it is there, and frees it."""
        handles = []
        for name, layer in self.layers.items():
            weight, transposed = layer.base.weight.requires_grad_(True), isinstance(layer.base, Conv1D)

            def add_gradient(parameter: torch.Tensor, name: str = name, transposed: bool = transposed) -> None:
                gradient = parameter.grad
                assert gradient is not None  # the hook runs once it is there
                sums[name] += (gradient.T if transposed else gradient).float().cpu()
                parameter.grad = None

            handles.append(weight.register_post_accumulate_grad_hook(add_gradient))
        try:
            yield
        finally:
            for handle, layer in zip(handles, self.layers.values()):
                handle.remove()
                layer.base.weight.requires_grad_(False)

    def adamw_optimizer(
        self, parameters: dict[str, torch.nn.Parameter] | Iterable[Any], **options: Any
    ) -> torch.optim.AdamW:
        """The optimizer of most methods.

        Args:
            parameters: by name; or a sequence of them, or of dicts of groups, in which `ratio` multiplies the group's
                learning rate.
        """
        groups: Any = parameters.values() if isinstance(parameters, dict) else parameters
        options = {"lr": self.recipe.learning_rate, "weight_decay": self.recipe.weight_decay} | options
        return torch.optim.AdamW(groups, **options)

    def adamw_without_decay(
        self, spared: Callable[[str], bool], parameters: dict[str, torch.nn.Parameter]
    ) -> torch.optim.AdamW:
        """`adamw_optimizer` without weight decay on the parameters whose names are `spared`."""
        groups: dict[bool, list[torch.nn.Parameter]] = {}
        for name, parameter in parameters.items():
            groups.setdefault(spared(name), []).append(parameter)
        decay: dict[bool, dict[str, Any]] = {True: {"weight_decay": 0.0}, False: {}}
        return self.adamw_optimizer([{"params": group} | decay[kind] for kind, group in groups.items()])

    def create_optimizer(self, parameters: dict[str, torch.nn.Parameter], recipe: Training) -> torch.optim.Optimizer:
        self.optimizing = self.method.create_optimizer(self, parameters)
        return self.optimizing

    def after_restore(self) -> None:
        round_masters(self.model)

    def before_step(self, step: int) -> None:
        self.method.before_step(self, step)

    def step_penalty(self) -> torch.Tensor | None:
        return self.method.step_penalty(self)

    def summed_tensors(self) -> list[torch.Tensor]:
        return [layer.tensors[key] for layer in self.layers.values() for key in sorted(layer.method.summed)]

    def after_step(self, step: int) -> None:
        self.method.after_step(self, step)
        round_masters(self.model)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        found = self.method.state_tensors(self)
        for name, layer in self.layers.items():
            found |= {f"{name}.{key}": tensor for key, tensor in layer.named_buffers(recurse=False)}
        return found
