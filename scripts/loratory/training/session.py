"""One training of one adapter, as its method sees it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from loratory.adapters.contract import Method
from loratory.adapters.core import AdaptedLinear, Conv1D
from loratory.bases.core import Base, Encoded
from loratory.data import batching
from loratory.data.clips import as_clip
from loratory.training.augmentation import Augmentation
from loratory.training.encoding import example_lengths
from loratory.training.fit import TrainingHooks, step_seed
from loratory.training.schedule import Training


class AdapterSession(TrainingHooks):
    """Passes the loop's hooks on to the method, and offers the method what it needs for them.

    Attributes:
        model: the base with its adapted layers.
        layers: {name: adapted layer}; the method's `prepare_training` may take some away.
        items: the encoded training examples. recipe: steps, rates and weight decay of the training.
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
        items: Sequence[Encoded],
        recipe: Training,
        seed: int,
        augmentation: Augmentation | None = None,
    ):
        self.base, self.method, self.layers, self.items = base, method, layers, items
        self.recipe, self.seed, self.augmentation = recipe, seed, augmentation
        self.plan = self.batch_plan(items)
        self.batch = self.batch_function(items)
        self.positions = 0

    @property
    def model(self) -> torch.nn.Module:
        return self.base.model

    def batch_plan(self, items: Sequence[Encoded]) -> batching.Batches:
        """number -> indices of that batch's examples, as the training itself draws them."""
        return batching.Batches(self.longest_lengths(items), self.recipe.batch_tokens, self.seed)

    def batch_function(self, items: Sequence[Encoded]) -> Callable[[int], dict]:
        """number -> batch, over some of the examples."""
        plan = self.batch_plan(items)

        def make_batch(number: int) -> dict:
            chosen = self.augment_items([items[i] for i in plan(number)], number)
            return self.base.training_batch(chosen, step_seed(self.seed, number))

        return make_batch

    def batch_items(self, number: int) -> list[Encoded]:
        """The examples of that batch of the training, as they are learnt from."""
        return self.augment_items([self.items[i] for i in self.plan(number)], number)

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
        batches = range(self.recipe.batch_numbers(self.recipe.steps).start)
        return sum(map(len, map(self.batch_plan(self.items), batches)))

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
        """
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

    def before_step(self, step: int) -> None:
        self.method.before_step(self, step)

    def step_penalty(self) -> torch.Tensor | None:
        return self.method.step_penalty(self)

    def after_step(self, step: int) -> None:
        self.method.after_step(self, step)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        found = self.method.state_tensors(self)
        for name, layer in self.layers.items():
            found |= {f"{name}.{key}": tensor for key, tensor in layer.named_buffers(recurse=False)}
        return found
