"""Every option of every method reaches what it names, and every method trains with the recipe's decay and clipping."""

import importlib
import json
from functools import cache

import pytest
import torch
from families import FAMILIES, Toy, begin, train
from models import llama

from loratory import registry
from loratory.adapters import core
from loratory.adapters.methods import flexora
from loratory.adapters.methods.flexora import positive_groups
from loratory.training.session import AdapterSession
from loratory.training.sweep import export_adapter

METHODS = registry.registered_names("method")
OTHER = {  # {option: a value other than in a method's `ROW`}, unless `OTHER_OF` has one
    "target_modules": ["q_proj"],
    "rank": 2,
    "alpha": 5.0,
    "dropout": 0.5,
    "lr_ratio": 8.0,
    "export_rank": 1,
    "batches": 1,
    "frozen": False,
    "beta1": 0.1,
    "beta2": 0.1,
    "orthogonality": 3.0,
    "warm": 0.4,
    "final": 0.6,
    "interval": 3,
    "offset_base": True,
    "middle": "pinv",
    "freeze_share": 0.9,
    "update_gap": 2,
    "scale": 0.5,
    "gamma": 64.0,
    "stabilised": False,
    "direction": "A2rBr",
    "init_scale": "unit",
    "estimation_batch": 9,
    "eta": 0.5,
    "sigma": 0.5,
    "beta": 30.0,
    "search": 0.5,
    "hyper_rate": 3.0,
    "validation_batches": 1,
    "held": 0.5,
    "layers": 2,
    "period": 2,
    "reset_state": False,
    "bases": 5,
    "sparsity": 30.0,
    "active": 2,
    "rank_partition": 4,
    "bias_step": 0.5,
    "mini": 2,
    "init_rank": 5,
    "target_rank": 1,
    "increment": 1,
    "growths": 1,
    "advance": False,
    "type": "lokr",
    "options": {"r": 2},
    "init": "released_code",
    "mode": "kpm",
    "examples": 2,
    "rho": 2.0,
    "bits": 8,
    "iterations": 3,
    "group_size": 4,
}
OTHER_OF = {("galore", "rank"): 3, ("dylora", "rank"): 3, ("smora", "rank"): 4}
WITH = {  # what an option needs to count
    ("lamda", "alpha"): {"init": "released_code"},
    ("lamda_pp", "alpha"): {"init": "released_code"},
    ("flexora", "validation_batches"): {"held": 0.5, "search": 0.9},  # else they all hold the same example
}
SAME = {("nola", "keep_bases")}  # it spares computing at the price of memory
WHOLE = ("bitfit", "full_ft", "head_only", "lisa")
MEANINGLESS = {(name, "target_modules") for name in WHOLE}  # takes no value but none
ALLOCATE = ("adalora", "increlora")  # ranks among layers, of which there must be some
SPARED = {  # of weight decay: what it would pull off its start, freeze, or gates of ranks
    "adalora": ("E",),
    "corda": ("A", "B"),
    "olora": ("A", "B"),
    "pissa": ("A", "B"),
    "increlora": ("E",),
    "lamda": ("S", "B"),
    "lamda_pp": ("S", "B"),
    "lora_ga": ("A", "B"),
    "s2_lora": ("s",),
}
PAIRS = [
    (name, option)
    for name in METHODS
    for option in registry.load_module("method", name).Method.model_fields
    if (name, option) not in MEANINGLESS
]


def small_toy(name: str) -> Toy:
    """A base that the method can train."""
    if (family := row(name).families[0]) != "llama":
        return FAMILIES[family]()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return Toy(lambda: llama(60, **sizes), 14)


def row(name: str):
    return importlib.import_module(f"methods.test_{name}").ROW


def made(name: str, **changes):
    whole = (name, "target_modules") in MEANINGLESS or name in ALLOCATE
    few = {} if whole else {"target_modules": ("q_proj", "up_proj")}
    return registry.load_module("method", name).Method(**few | row(name).options | changes)


@cache
def outcome_of(name: str, changes: str) -> dict[str, torch.Tensor]:
    """What is stored of a short training, and what the model then says."""
    toy, method, searched = small_toy(name), made(name, **json.loads(changes)), {}
    layers = dict.fromkeys(core.linear_layers(toy.model), False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flexora, "positive_groups", lambda found: searched.update(found) or positive_groups(found))
        train(toy, method, "unused", steps=7 if name in ALLOCATE else 5, rate=row(name).rate)
    said = toy.output()
    adapter, _ = export_adapter(toy, method, layers)
    stored = {f"{layer}.A": delta.A for layer, delta in adapter.deltas.items()} | adapter.dense
    return {"said": said, "searched": torch.tensor([*searched.values()])} | stored


def outcome(name: str, **changes) -> dict[str, torch.Tensor]:
    return outcome_of(name, json.dumps(changes))


def differ(one: dict, other: dict) -> bool:
    if one.keys() != other.keys() or any(one[key].shape != other[key].shape for key in one):
        return True
    return any(one[key].numel() and (one[key] - other[key]).abs().max() > 1e-6 for key in one)


@pytest.mark.parametrize(("name", "option"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_another_value_of_an_option_changes_what_is_trained_or_stored(name, option):
    if (name, option) in SAME:
        value = not made(name).model_dump()[option]
    else:
        value = OTHER_OF.get((name, option), OTHER.get(option))
        assert value is not None, "a new option: give it another value in `OTHER`"
    assert value != made(name).model_dump()[option], "not another value"
    needed = WITH.get((name, option), {})
    plain, other = outcome(name, **needed), outcome(name, **needed, **{option: value})
    assert differ(plain, other) == ((name, option) not in SAME)


@pytest.mark.parametrize("name", METHODS)
def test_weight_decay_reaches_all_that_is_trained_but_what_its_method_spares(name):
    toy = small_toy(name)
    session = begin(toy, made(name, **({"frozen": False} if name == "dylora" else {})), decay=0.5, rate=0.1)
    parameters = core.trainable_parameters(toy.model)
    before = {parameter: tensor.detach().clone() for parameter, tensor in parameters.items()}
    for tensor in parameters.values():
        tensor.grad = torch.zeros_like(tensor)
    session.create_optimizer(parameters, session.recipe).step()
    for parameter, tensor in parameters.items():
        spared = ".adapter." in parameter and parameter.rpartition(".")[2] in SPARED.get(name, ())
        torch.testing.assert_close(tensor.detach(), before[parameter] * (1.0 if spared else 1 - 0.1 * 0.5))


@pytest.mark.parametrize("name", METHODS)
def test_every_step_follows_the_clipped_gradient(name, monkeypatch):
    norms, create = [], AdapterSession.create_optimizer

    def watched(session, parameters, recipe):
        optimizer = create(session, parameters, recipe)
        gradients = lambda *_: [p.grad.flatten() for p in parameters.values() if p.grad is not None]  # noqa: E731
        optimizer.register_step_pre_hook(lambda *_: norms.append(float(torch.cat(gradients()).norm())))
        return optimizer

    monkeypatch.setattr(AdapterSession, "create_optimizer", watched)
    train(small_toy(name), made(name), "unused", steps=3, clip=1e-5)
    assert norms == pytest.approx([1e-5] * 3, rel=0.1)  # clipping adds 1e-6 to a norm
