import peft
import pytest
import torch
from models import llama, trained_adapter
from peft.tuners.lora.config import ArrowConfig
from peft_merges import experts

from loratory.adapters import deltas
from loratory.adapters.core import apply
from loratory.adapters.deltas import Adapter, LowRank
from loratory.adapters.methods.lora import Method
from loratory.mixers.contract import GateInput
from loratory.mixers.core import Mixture
from loratory.mixers.methods.arrow import Mixer, main_direction

IDS = torch.arange(2 * 9).view(2, 9) % 40 + 3
CLOSE = {"rtol": 0, "atol": 1e-5}
Q = "model.layers.0.self_attn.q_proj"


def of_one_direction(seed: int) -> Adapter:
    """Of rank 2, with a singular value far above the other, so that PEFT's 15 steps of power iteration arrive."""
    adapter = trained_adapter(llama(), Method(rank=2, alpha=5.0), seed)
    for delta in adapter.deltas.values():
        delta.B[:, 1] *= 0.02
    return adapter


@torch.no_grad()
@pytest.mark.parametrize(("top_k", "temperature"), [(1, 1.0), (2, 0.5), (3, 0.1)])
def test_logits_equal_peft(tmp_path, top_k, temperature):
    given = {str(seed): of_one_direction(seed) for seed in range(3)}
    for name, adapter in given.items():
        deltas.save_adapter(tmp_path / name, adapter, causal=True)
    config = ArrowConfig(top_k=top_k, router_temperature=temperature, rng_seed=0)
    theirs = peft.tuners.lora.create_arrow_model(llama(), [str(tmp_path / name) for name in given], config).eval()
    ours = Mixture(llama(), given, Mixer(top_k=top_k, temperature=temperature)).eval()
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(IDS).logits, **CLOSE)


@torch.no_grad()
def test_a_prototype_is_the_top_right_singular_vector_of_the_change():
    for adapter in experts().values():
        for delta in adapter.deltas.values():
            expected = torch.linalg.svd(delta.to_dense()).Vh[0]
            found = main_direction(delta)
            torch.testing.assert_close(found * (found @ expected).sign(), expected, **CLOSE)


@torch.no_grad()
def test_each_layer_routes_by_what_comes_into_it():
    mixture = Mixture(llama(), experts(), Mixer(top_k=2, temperature=0.3)).eval()
    came = []
    mixture.layers[Q].register_forward_pre_hook(lambda module, given: came.append(given[0]))
    mixture(input_ids=IDS)
    prototypes = torch.stack([torch.linalg.svd(a.deltas[Q].to_dense()).Vh[0] for a in experts().values()])
    alike = (came[0] @ prototypes.T).abs() / 0.3
    lowest = alike.argmin(-1, keepdim=True)
    expected = alike.scatter(-1, lowest, float("-inf")).softmax(-1)
    torch.testing.assert_close(mixture.applied[Q], expected, **CLOSE)


@torch.no_grad()
def test_an_expert_that_leaves_a_layer_alone_has_no_say_there():
    mixture = Mixture(llama(), experts(), Mixer()).eval()
    mixture(input_ids=IDS)
    down = mixture.applied["model.layers.1.mlp.down_proj"]  # of a and b
    assert (down[..., :2] > 0).all()
    assert not down[..., 2].any()
    torch.testing.assert_close(down.sum(-1), torch.ones(2, 9), **CLOSE)


@torch.no_grad()
def test_a_layer_that_no_expert_changes_stays_as_it_is():
    given = experts()
    for adapter in given.values():
        if Q in adapter.deltas:
            adapter.deltas[Q].B.zero_()
    without = {name: Adapter({m: d for m, d in a.deltas.items() if m != Q}) for name, a in given.items()}
    logits = [Mixture(llama(), found, Mixer()).eval()(input_ids=IDS).logits for found in (given, without)]
    assert logits[0].isfinite().all()
    torch.testing.assert_close(*logits, **CLOSE)


@torch.no_grad()
def test_experts_that_are_one_and_the_same_are_that_expert():
    one, alone = experts()["a"], llama()
    apply(alone, one, "a")
    mixture = Mixture(llama(), {"x": one, "y": one}, Mixer()).eval()
    torch.testing.assert_close(mixture(input_ids=IDS).logits, alone(IDS).logits, **CLOSE)


@torch.no_grad()
def test_the_sign_of_an_input_does_not_matter():
    mixture = Mixture(llama(), experts(), Mixer())
    gate, sizes = mixture.gate["tokens"], mixture.sizes["tokens"]
    x = torch.randn(1, 5, sizes.widths[0], generator=torch.Generator().manual_seed(0))
    weights = [mixture.mixer.routing_weights(gate, GateInput(input=sign * x, layer=0), sizes) for sign in (1, -1)]
    assert torch.equal(*weights)
    assert weights[0].std() > 0.01


def test_a_change_of_nothing_has_no_prototype():
    assert not main_direction(LowRank(torch.ones(2, 4), torch.zeros(3, 2), 1.0)).any()
