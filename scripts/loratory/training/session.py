"""One training of one adapter, as its method sees it."""

from collections.abc import Callable
from contextlib import contextmanager

import torch

from loratory.adapters.core import AdaptedLinear, Conv1D
from loratory.data import batching
from loratory.training.fit import Recipe, TrainingHooks


class AdapterSession(TrainingHooks):
    """Hands the loop's course to the method, and the method what it needs.

    Attributes:
        model: the base with its adapted layers; layers: {name: adapted layer}, which `prepare` may thin out.
        items: the encoded training examples. recipe: steps, rates and weight decay of the training.
        batch: step -> the training batch of that step (a pure function).
        optimizing: the optimizer, once there is one.
        positions: how many positions went through the model outside the training's own steps.
    """

    def __init__(
        self, base, method, layers: dict[str, AdaptedLinear], items: list, training, recipe: Recipe, seed: int
    ):
        self.base, self.method, self.layers, self.items = base, method, layers, items
        self.recipe, self.seed, self.budget = recipe, seed, training.batch_tokens
        self.batch = self.batch_function(items)
        self.optimizing, self.positions = None, 0

    @property
    def model(self):
        return self.base.model

    def batch_function(self, items: list) -> Callable[[int], dict]:
        """step -> batch, over some of the examples, as the training itself draws them."""
        plan = batching.Batches([item.length for item in items], self.budget, self.seed)
        return lambda step: self.base.collate([items[i] for i in plan(step)])

    def loss(self, batch: dict) -> torch.Tensor:
        """Mean over the batch's targets, for passes besides the training's steps; they are counted."""
        total, targets = self.base.loss(self.model, batch)
        self.positions += batch["ids"].numel()
        return total / targets

    def weight_gradients(self, batches: int) -> dict[str, torch.Tensor]:
        """{layer: mean ∂loss/∂W `[out, in]`} over the batches of the first steps, on the CPU in float32.

        Only one layer's gradient is held on the device at a time; nothing is moved.
        """
        sums = {name: torch.zeros(layer.weight.shape) for name, layer in self.layers.items()}
        with self.collect_gradients(sums):
            for step in range(batches):
                self.loss(self.batch(step)).backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        return {name: total / batches for name, total in sums.items()}

    @contextmanager
    def collect_gradients(self, sums: dict[str, torch.Tensor]):
        """Adds each adapted weight's gradient to `sums` as soon as it is there, and frees it."""
        handles = []
        for name, layer in self.layers.items():
            weight, transposed = layer.base.weight.requires_grad_(True), isinstance(layer.base, Conv1D)

            def add_gradient(parameter, name=name, transposed=transposed):
                sums[name] += (parameter.grad.T if transposed else parameter.grad).float().cpu()
                parameter.grad = None

            handles.append(weight.register_post_accumulate_grad_hook(add_gradient))
        try:
            yield
        finally:
            for handle, layer in zip(handles, self.layers.values()):
                handle.remove()
                layer.base.weight.requires_grad_(False)

    def adamw_optimizer(self, parameters: dict, **options) -> torch.optim.AdamW:
        """The optimizer of most methods; `parameters` may be dicts of groups (`ratio` multiplies a group's rate)."""
        groups = parameters.values() if isinstance(parameters, dict) else parameters
        options = {"lr": self.recipe.learning_rate, "weight_decay": self.recipe.weight_decay} | options
        return torch.optim.AdamW(groups, **options)

    def adamw_without_decay(self, spared: Callable[[str], bool], parameters: dict) -> torch.optim.AdamW:
        """`adamw` without weight decay on the parameters whose names are `spared`."""
        groups: dict[bool, list] = {}
        for name, parameter in parameters.items():
            groups.setdefault(spared(name), []).append(parameter)
        decay = {True: {"weight_decay": 0.0}, False: {}}
        return self.adamw_optimizer([{"params": group} | decay[kind] for kind, group in groups.items()])

    def create_optimizer(self, parameters, recipe):
        self.optimizing = self.method.create_optimizer(self, parameters)
        return self.optimizing

    def before_step(self, step):
        self.method.before_step(self, step)

    def step_penalty(self):
        return self.method.step_penalty(self)

    def after_step(self, step):
        self.method.after_step(self, step)

    def state_tensors(self):
        found = self.method.state_tensors(self)
        for name, layer in self.layers.items():
            found |= {f"{name}.{key}": tensor for key, tensor in layer.named_buffers(recurse=False)}
        return found
