"""A mixture: a base, stacked experts and a mixer, and the two passes by which some mixers weigh."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, PretrainedConfig, PreTrainedModel

from loratory.adapters.core import linear_layers
from loratory.adapters.deltas import Adapter
from loratory.bases.blocks import transformer_blocks
from loratory.bases.decoding import empty_cache, reorder_cache
from loratory.errors import InputError
from loratory.mixers.checks import check_experts
from loratory.mixers.contract import GateInput, GateShape, Mixer
from loratory.mixers.layers import GateContext, LayerWeights, Linear, MixedLinear
from loratory.mixers.recompute import checkpoint_blocks
from loratory.mixers.streams import FRAMES, TOKENS, EncodedAudio, bare_states, mean_pool, module_streams


@dataclass
class PairCache:
    """One cache for the pass without experts and one for the pass with them: never to be shared.

    Attributes:
        bare: None if the mixer needs no such pass.
        fixed_weights: `[batch, 1, modules, experts]`, those that stay as they are from here on; None while none do.
        calls: passes so far; the first is the prompt's, each later one adds a token.
    """

    bare: Cache | None
    mixed: Cache
    fixed_weights: torch.Tensor | None = None
    calls: int = 0

    def reorder_cache(self, rows: torch.Tensor) -> None:
        """As of a Hugging Face cache; rows of one text have the same fixed weights."""
        for cache in (self.bare, self.mixed):
            if cache is not None:
                reorder_cache(cache, rows)


class Mixture(nn.Module):
    """A base with stacked experts and a mixer; called like the Hugging Face model it wraps.

    Exact with caches: the gate of a token depends on the base's states of that token and those before it, so two
    caches give the same numbers as running the whole prefix anew.

    Attributes:
        experts: as they were put on; names: of these, in the order of the gate's outputs.
        domains: those that the mixture was made for, in the order of the experts that were given.
        hold_after: an approximation: the gate weighs the prompt and so many written tokens, and its last weights stay
            for all later ones. None, the default, is exact.
        routing_weights, applied: weights of the latest pass before and after the mixer's `select_weights`: {stream:
            `[batch, length, modules, experts]`}, or {module: `[batch, length, experts]`} where layers weigh for
            themselves.
        wants: names in a batch of what a mixture takes besides the model's inputs; see `forward`.
    """

    wants: tuple[str, ...] = ("prompt", "is_audio", "hidden", "context")

    def __init__(
        self,
        model: PreTrainedModel,
        experts: dict[str, Adapter],
        mixer: Mixer,
        where: Path | str = "mixture",
        domains: Sequence[str] | None = None,
    ):
        super().__init__()
        self.model, self.experts, self.names, self.mixer = model, experts, list(experts), mixer
        self.domains = list(domains or experts)
        self.context = GateContext()
        self.hold_after: int | None = None
        self.routing_weights: dict[str, torch.Tensor] = {}
        self.applied: dict[str, torch.Tensor] = {}
        check_experts(model, experts, where)
        self.heads = [adapter.heads for adapter in experts.values()]
        self.own_heads: dict[str, torch.Tensor] = {}
        self._domain: int | None = None
        model.requires_grad_(False)
        self.layers = self.stack_experts(experts)
        apart = mixer.reads == "hidden" and not mixer.per_sequence
        self.streams = module_streams(model, list(self.layers), apart)
        self.sizes = {stream: self.gate_shape(names) for stream, names in self.streams.items()}
        built = {stream: mixer.build_gate(sizes) for stream, sizes in self.sizes.items()}
        gates = {stream: gate for stream, gate in built.items() if gate is not None}
        self.gate = nn.ModuleDict(gates).to(model.device) if len(gates) == len(built) else None
        for stream, gate in self.gate.items() if self.gate is not None else ():
            mixer.prepare_gate(gate, self.sizes[stream], experts)

    def start_gate(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes what the mixer's `pretrain_gate` gave into the gate of each stream."""
        for gate in self.gate.values() if self.gate is not None and tensors else ():
            gate.load_state_dict(tensors, strict=False)

    def stack_experts(self, experts: dict[str, Adapter]) -> dict[str, MixedLinear]:
        """Puts the experts' changes on the model's layers; {module: layer} in the order of names."""
        layers, stacked = linear_layers(self.model), {}
        for slot, name in enumerate(sorted({name for adapter in experts.values() for name in adapter.deltas})):
            deltas = [adapter.deltas.get(name) for adapter in experts.values()]
            layer = cast(Linear, layers[name])
            stacked[name] = MixedLinear(layer, name, slot, self.context, deltas, self.mixer)
            self.model.set_submodule(name, stacked[name])
        return stacked

    def gate_shape(self, names: tuple[str, ...]) -> GateShape:
        layers = [self.layers[name] for name in names]
        widths, ranks = tuple(layer.A.shape[1] for layer in layers), tuple(len(layer.owner) for layer in layers)
        return GateShape(len(self.names), self.model.config.hidden_size, names, widths, ranks)

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def domain(self) -> int | None:
        """Which of `domains` the input is from: for mixers that need it, and for experts' own heads."""
        return self._domain

    @domain.setter
    def domain(self, index: int | None) -> None:
        self._domain = index
        if any(self.heads):
            self.put_heads(self.own_heads if index is None else self.heads[index])

    def put_heads(self, heads: dict[str, torch.Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for name, tensor in heads.items():
            self.own_heads.setdefault(name, parameters[name].detach().clone())
            parameters[name].data.copy_(tensor)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """{name: parameter} of the gate and of experts that move, in a fixed order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def train(self, mode: bool = True) -> Mixture:
        """Only the gate trains: dropout in a frozen base or expert would add noise to what the gate reads."""
        super().train(False)
        self.training = mode
        if self.gate is not None:
            self.gate.train(mode)
        for block in transformer_blocks(self.model):
            block.training = mode and block.gradient_checkpointing  # it looks there before it checkpoints
        return self

    def checkpoint_gradients(self) -> None:
        """Activations of the base's blocks are computed anew in the backward pass, under the weights they had."""
        checkpoint_blocks(self.model, self.context)
        self.train(self.training)

    def new_cache(self, make: Callable[[], Cache] | None = None) -> PairCache:
        """Args:
        make: makes one empty cache of the wrapped model; those that grow if not given.

        Raises:
            InputError: the mixer's weights cannot be made token by token.
        """
        if self.mixer.needs_whole_batch:
            what = "tokens cannot be written one by one: their weights depend on all tokens of the batch"
            raise InputError(type(self.mixer).__name__, what, fix="run whole texts, or take another mixer")
        make = make or (lambda: empty_cache(self.model))
        return PairCache(make() if self.mixer.reads == "hidden" else None, make())

    def forward(
        self,
        past_key_values: PairCache | None = None,
        prompt: torch.Tensor | None = None,
        is_audio: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Args:
        prompt: `[batch, length]`, true where a position is given and not written; all that are attended if not given.
        is_audio, context: see `GateInput`. hidden: `[batch, length, hidden]` of the bare base, if they are known.
        inputs: of the wrapped model; `encoder_outputs`, if given, is what `encode_audio` returned.

        Returns:
            The wrapped model's output.
        """
        cache, audio = past_key_values, inputs.get("encoder_outputs")
        seen = GateInput(is_audio=is_audio, context=context, domain=self.domain)
        weights = self.layer_weights(self.compute_weights(inputs, seen, cache, prompt, hidden), seen)
        if cache is not None:
            inputs["past_key_values"] = cache.mixed
            cache.calls += 1
        if isinstance(audio, EncodedAudio):
            inputs["encoder_outputs"] = audio.mixed
        with self.context.use_weights(weights):
            return self.model(**inputs)

    def get_encoder(self) -> Callable[[torch.Tensor], EncodedAudio]:
        return self.encode_audio

    def encode_audio(self, features: torch.Tensor) -> EncodedAudio:
        """An encoder's work of a whole transcript: its states with experts and without them, and their weights."""
        encoder, seen, states, weights = self.model.get_encoder(), GateInput(domain=self.domain), None, {}
        if self.mixer.reads == "hidden":
            with torch.no_grad(), self.context.use_weights(None):
                states = encoder(features)
            weights = self.weights_from_states(
                self.gate_states({FRAMES: states.last_hidden_state}, None, features), seen
            )
        elif self.mixer.reads != "input":
            weights = self.weights_from_states(None, seen)
        with self.context.use_weights(self.layer_weights(weights, seen)):
            return EncodedAudio(encoder(features), states, weights)

    def compute_weights(
        self,
        inputs: Mapping[str, Any],
        seen: GateInput,
        cache: PairCache | None = None,
        prompt: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The weights to apply {stream: `[batch, length, modules, experts]`}, without the pass that applies them."""
        if self.mixer.reads == "input":
            self.routing_weights, self.applied = {}, {}
            return {}
        audio = inputs.get("encoder_outputs")
        known = dict(audio.weights) if isinstance(audio, EncodedAudio) else {}
        if cache is not None and cache.fixed_weights is not None:
            known[TOKENS] = cache.fixed_weights
        if known.keys() >= self.streams.keys():
            return known
        states = None
        if self.mixer.reads == "hidden":
            bare = cache.bare if cache is not None else None
            states = {TOKENS: hidden} if hidden is not None else self.bare_states(inputs, bare)
            given = prompt if prompt is not None else inputs.get("attention_mask")
            states = self.gate_states(states, given, inputs.get("input_features"))
        weights = known | self.weights_from_states(states, seen, known)
        if cache is not None and (self.mixer.per_sequence or cache.calls == self.hold_after):
            cache.fixed_weights = weights[TOKENS][:, -1:]
        return weights

    def bare_states(self, inputs: Mapping[str, Any], cache: Cache | None = None) -> dict[str, torch.Tensor]:
        """The base's last hidden states of each stream, computed without experts and without the head."""
        with torch.no_grad(), self.context.use_weights(None):
            return bare_states(self.model, inputs, cache)

    def gate_states(
        self, states: dict[str, torch.Tensor], prompt: torch.Tensor | None, features: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The states that a gate reads: as they are, or one for each sequence."""
        return {TOKENS: mean_pool(states, prompt, features)} if self.mixer.per_sequence else states

    def weights_from_states(
        self, states: dict[str, torch.Tensor] | None, seen: GateInput, known: Collection[str] = ()
    ) -> dict[str, torch.Tensor]:
        """The weights of the streams whose states are given, or of all streams if states do not matter."""
        self.routing_weights = {}
        for stream in self.sizes:
            if stream not in known and (states is None or stream in states):
                hidden = None if states is None else states[stream]
                self.routing_weights[stream] = self.compute_routing_weights(stream, replace(seen, hidden=hidden))
        self.applied = {stream: self.mixer.select_weights(weights) for stream, weights in self.routing_weights.items()}
        return self.applied

    def compute_routing_weights(self, stream: str, seen: GateInput) -> torch.Tensor:
        """What the mixer wants; a gate computes in single precision whatever the passes around it do."""
        with torch.autocast(self.model.device.type, enabled=False):
            return self.mixer.routing_weights(self.stream_gate(stream), seen, self.sizes[stream]).to(self.model.device)

    def stream_gate(self, stream: str) -> nn.Module | None:
        return None if self.gate is None else self.gate[stream]

    def layer_weights(self, weights: dict[str, torch.Tensor], seen: GateInput) -> LayerWeights:
        if self.mixer.reads == "input":
            return InputWeights(self, seen)
        by_slot: dict[int, torch.Tensor] = {}
        for stream, applied in weights.items():
            parts = applied.unbind(-2)
            slots = [self.layers[name].slot for name in self.streams[stream]]
            by_slot |= zip(slots, parts if len(parts) == len(slots) else parts * len(slots))
        return PassWeights(by_slot)

    def token_routing(self, **inputs: Any) -> torch.Tensor:
        """`stream_routing` of the tokens alone; where experts change nothing that reads tokens, means over frames."""
        found = self.stream_routing(**inputs)
        return found[TOKENS] if TOKENS in found else found[FRAMES].mean(1, keepdim=True)

    @torch.no_grad()
    def stream_routing(
        self,
        prompt: torch.Tensor | None = None,
        is_audio: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, torch.Tensor]:
        """The weights that are applied to each expert at each position of each stream,
        `[batch | 1, length | 1, modules | 1, experts]`; for a mixer of ranks, means over an expert's ranks.

        Streams that are weighed alike (by a mixer that is `per_sequence` or reads nothing) are one, `tokens`.
        """
        if self.mixer.reads != "input":
            seen = GateInput(is_audio=is_audio, context=context, domain=self.domain)
            return self.compute_weights(inputs, seen, None, prompt, hidden)
        self(prompt=prompt, is_audio=is_audio, **inputs)
        # whatever the order in which the layers were called: `applied` is read in the order of names
        apart = module_streams(self.model, list(self.layers), apart=True)
        return {
            stream: torch.stack([self.expert_means(self.layers[name], self.applied[name]) for name in names], 2)
            for stream, names in apart.items()
        }

    def expert_means(self, layer: MixedLinear, weights: torch.Tensor) -> torch.Tensor:
        if not layer.by_rank:
            return weights
        share = nn.functional.one_hot(layer.owner, len(self.names)).to(weights.dtype)
        return weights @ (share / share.sum(0).clamp(min=1))

    def current_experts(self) -> dict[str, Adapter]:
        """The experts as they are now; those that do not move are those that were given, bit for bit."""
        if not self.mixer.trains_experts:
            return self.experts
        found = {}
        for index, (name, adapter) in enumerate(self.experts.items()):
            deltas = {
                module: self.layers[module].current_delta(index, d.scale) for module, d in adapter.deltas.items()
            }
            found[name] = Adapter(deltas, heads=adapter.heads)
        return found

    def remove_experts(self) -> None:
        """Takes the experts off the model again."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)
        self.put_heads(self.own_heads)
        for block in transformer_blocks(self.model):
            block.gradient_checkpointing = block.training = False


class PassWeights:
    """Weights that were made before the pass: {slot: `[batch | 1, length | 1, experts]`}."""

    def __init__(self, by_slot: dict[int, torch.Tensor]):
        self.by_slot = by_slot

    def __call__(self, layer: MixedLinear, x: torch.Tensor) -> torch.Tensor:
        return self.by_slot[layer.slot]

    def recompute_copy(self) -> LayerWeights:
        return self


class InputWeights:
    """Weights that each layer makes of its own input.

    Args:
        noted: the mixture shows them as its latest. Those of a repeated pass are not, as this would keep in memory
            all that the pass computes anew.
    """

    def __init__(self, mixture: Mixture, seen: GateInput, noted: bool = True):
        self.mixture, self.seen, self.noted = mixture, seen, noted

    def __call__(self, layer: MixedLinear, x: torch.Tensor) -> torch.Tensor:
        mixture = self.mixture
        weights = mixture.compute_routing_weights(TOKENS, replace(self.seen, input=x, layer=layer.slot))
        applied = mixture.mixer.select_weights(weights)
        if self.noted:
            mixture.routing_weights[layer.name], mixture.applied[layer.name] = weights, applied
        return applied

    def recompute_copy(self) -> LayerWeights:
        """For a repeated pass: it must find what earlier layers left, and not what it left itself the first time."""
        return InputWeights(self.mixture, replace(self.seen, pass_state=dict(self.seen.pass_state)), noted=False)
