"""Layers of PEFT's own types: one method for all of them that amount to a change of one weight.

y = tuner(x) + bias, where `tuner` is PEFT's layer around the frozen weight W alone. It is built from W and a stored
seed, so whatever a type freezes besides W (projections, masks, places in a spectrum) is made again and never stored.
The change of the weight is what PEFT's own merge makes of W.

Project interpretation: a layer's bias stays outside, while PEFT's `ia3` and `road` change it too; the random bases of
`vera` and `randlora` are drawn for each shape instead of being cut from the largest layer's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from weakref import WeakKeyDictionary

from pydantic import AfterValidator, Field

from loratory.adapters import contract
from loratory.errors import InputError
from loratory.registry import unknown_name_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import Dense

TYPES = {
    "boft": "butterfly-factorised orthogonal rotation, arXiv:2311.06243",
    "c3a": "block-circular convolution, arXiv:2407.19342",
    "deft": "low rank in place of what a projection takes out",
    "delora": "normalised low rank with a learned strength, arXiv:2503.18225",
    "fourierft": "sparse Fourier spectrum, arXiv:2405.03003",
    "gralora": "low rank in blocks, arXiv:2505.20355",
    "hira": "low rank times the weight, ICLR 2025",
    "hra": "chain of Householder reflections, arXiv:2405.17484",
    "ia3": "scaled outputs or inputs, arXiv:2205.05638",
    "loha": "Hadamard product of two low ranks, arXiv:2108.06098",
    "lokr": "Kronecker product, arXiv:2309.14859",
    "oft": "block-orthogonal rotation, arXiv:2306.07280",
    "peanut": "small network that reads the weight, arXiv:2410.01870",
    "psoft": "rotation in the principal subspace, ICLR 2026",
    "randlora": "full rank from scaled random bases, arXiv:2502.00987",
    "road": "rotation of pairs of outputs, arXiv:2409.00119",
    "shira": "random sparse entries, arXiv:2406.13175",
    "supertuning": "largest entries alone, arXiv:2607.09287",
    "vera": "scaled random low rank, arXiv:2310.11454",
    "waveft": "sparse wavelet spectrum, arXiv:2505.12532",
}
INPUT = "it adds to the input and changes no weight"
SHARED = "it trains tensors that layers share, and layers are adapted one by one here"
REFUSED = {
    "lora": "use the method `lora`",
    "adalora": "use the method `adalora`",
    "miss": "use the method `miss`, or `bat`",
    "xlora": "use a mixture",
    **dict.fromkeys(("adaption_prompt", "cartridge", "cpt", "multitask_prompt_tuning", "p_tuning"), INPUT),
    **dict.fromkeys(("prefix_tuning", "prompt_tuning"), INPUT),
    **dict.fromkeys(("frod", "lily", "tinylora", "unilora", "vblora"), SHARED),
    "pvera": "its forward pass is random",
    "poly": "it depends on the task of each example",
    "shadow": "it is a network beside the base",
    "ln_tuning": "it changes normalisations",
    "trainable_tokens": "it changes embeddings",
    "beft": "it changes biases",
    "glora": "it changes biases too",
    "osf": "it needs hooks on its gradients",
    "adamss": "it needs a schedule of its own",
}
MODEL_OPTIONS = {
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "task_type",
    "peft_type",
}
MODEL_OPTIONS |= {
    "base_model_name_or_path",
    "inference_mode",
    "revision",
    "peft_version",
    "bias",
    "fan_in_fan_out",
    "auto_mapping",
}


def check_type(name: str) -> str:
    if name in REFUSED:
        raise ValueError(f"PEFT's `{name}` is not supported: {REFUSED[name]}")
    if name not in TYPES:
        raise ValueError(f"unknown PEFT type `{name}`, expected one of {', '.join(TYPES)}")
    return name


def is_model_option(option: str) -> bool:
    return option in MODEL_OPTIONS or "pattern" in option


def check_layer_options(options: dict[str, Any]) -> dict[str, Any]:
    """Refuses options about the whole model: PEFT is given one nameless layer at a time and would ignore them."""
    for name in options:
        if is_model_option(name):
            raise ValueError(f"`{name}` is not for a single layer; layers are chosen by the method's target_modules")
    return options


class Method(contract.DenseMethod):
    """y = W' x with W' as PEFT's layer of this `type` makes it from W; trained and stored as a dense change."""

    fixed: ClassVar[frozenset[str]] = frozenset({"seed"})

    type: Annotated[str, AfterValidator(check_type)] = Field(description=f"one of PEFT's types: {', '.join(TYPES)}")
    options: Annotated[dict[str, Any], AfterValidator(check_layer_options)] = Field(
        {}, description="options of PEFT's config of this type, such as {r: 8}; ia3 needs `feedforward_modules`"
    )

    def layer_methods(self, weights: Mapping[str, torch.Tensor]) -> dict[str, contract.Method]:
        inputs = self.options.get("feedforward_modules")  # of ia3: last names of the layers whose inputs are scaled
        if inputs is None:
            return super().layer_methods(weights)
        last = {name: name.rpartition(".")[2] for name in weights}
        for name in inputs:
            if name not in last.values():
                raise unknown_name_error("feedforward_modules", "adapted layer", name, set(last.values()))
        options = {
            name: self.options | {"feedforward_modules": ["it"] if last[name] in inputs else []} for name in last
        }
        return {name: self.model_copy(update={"options": own}) for name, own in options.items()}

    def check_library_options(self, at: str) -> None:
        self.config_class(f"{at}.options: PEFT's {self.type}")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        seed = torch.randint(2**62, (), generator=generator)
        tuner = self.build_tuner(weight, int(seed))
        return {key: p.detach().clone() for key, p in trained_parameters(tuner).items()} | {"seed": seed}

    def build_tuner(self, weight: torch.Tensor, seed: int) -> Any:
        """PEFT's layer around a copy of a weight, on the CPU; the same for the same seed.

        Raises:
            InputError: PEFT refuses the options or the layer's shape.
        """
        import peft
        import torch

        out, inner = weight.shape
        linear = torch.nn.Linear(inner, out, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(weight.detach().float().cpu().clone(), requires_grad=False)
        holder = torch.nn.ModuleDict({"it": linear})
        kind, made = peft.PeftType(self.type.upper()), self.config_class(f"PEFT's {self.type}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                peft.PEFT_TYPE_TO_TUNER_MAPPING[kind](holder, made(target_modules=["it"], **self.options), "default")
            except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
                raise InputError(f"PEFT's {self.type}", str(error)) from error
        return holder["it"]

    def config_class(self, where: str) -> Any:
        """PEFT's config of this type, which has all the options.

        Raises:
            InputError: at `where`, it does not.
        """
        from dataclasses import fields

        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

        made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.type.upper())]
        names = {field.name for field in fields(made)}
        for name in self.options:
            if name not in names:
                raise unknown_name_error(where, "option", name, {n for n in names if not is_model_option(n)})
        return made

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        from torch.func import functional_call

        tuner = self.cached_tuner(layer).train(layer.training)
        paths = {key: path for path, key in tensor_names(tuner).items()}
        tensors = {paths[key]: tensor for key, tensor in layer.adapter.items()}
        y = functional_call(tuner, tensors | {"base_layer.weight": layer.weight}, x)
        return y if layer.base.bias is None else y + layer.base.bias

    def cached_tuner(self, layer: AdaptedLinear) -> Any:
        """A layer's tuner, emptied of the tensors that the layer holds: these are put in at every call."""
        if layer not in TUNERS:
            tuner = self.build_tuner(layer.weight, int(layer.tensors["seed"])).to(layer.weight.device)
            for tensor in [tuner.get_base_layer().weight, *trained_parameters(tuner).values()]:
                tensor.data = tensor.data.new_empty(0)
            TUNERS[layer] = tuner
        return TUNERS[layer]

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> Dense:
        import torch

        from loratory.adapters.deltas import Dense

        tuner = self.build_tuner(weight, int(tensors["seed"])).to(weight.device)
        tuner.eval()  # in training, some types drop ranks
        with torch.no_grad():
            for key, parameter in trained_parameters(tuner).items():
                parameter.copy_(tensors[key])
            tuner.merge()
        return Dense(tuner.get_base_layer().weight.detach() - weight)


TUNERS: WeakKeyDictionary[AdaptedLinear, Any] = WeakKeyDictionary()  # the tuner of each adapted layer


def tensor_names(tuner: torch.nn.Module) -> dict[str, str]:
    """{path in the tuner: name without dots} of the parameters that PEFT trains."""
    paths = [path for path, parameter in tuner.named_parameters() if parameter.requires_grad]
    return {path: path.replace(".default", "").replace(".", "_") for path in paths}


def trained_parameters(tuner: torch.nn.Module) -> Parameters:
    parameters = dict(tuner.named_parameters())
    return {key: parameters[path] for path, key in tensor_names(tuner).items()}
