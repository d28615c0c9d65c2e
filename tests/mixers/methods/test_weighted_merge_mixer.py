import pytest
import torch
from models import llama
from peft_merges import dense, experts, merged_by_peft
from pydantic import ValidationError

from loratory.adapters.deltas import Adapter
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.methods import uniform
from loratory.mixers.methods.weighted_merge import Mixer

IDS = torch.arange(2 * 9).view(2, 9) % 40 + 3
SHARES = {"a": 0.5, "b": -0.3, "c": 1.2}
CLOSE = {"rtol": 0, "atol": 1e-5}


def merge(**options) -> Adapter:
    (found,) = Mixer(**options).prepare_experts(experts(), seed=0).values()
    return found


@torch.no_grad()
def test_the_merger_of_equal_shares_is_the_uniform_mixture():
    merged = Mixture(llama(), Mixer().prepare_experts(experts(), 0), Mixer(), domains=["a", "b", "c"]).eval()
    weighed = Mixture(llama(), experts(), uniform.Mixer()).eval()
    assert merged.names == ["merged"]
    torch.testing.assert_close(merged(input_ids=IDS).logits, weighed(input_ids=IDS).logits, **CLOSE)


def test_the_merger_is_the_weighted_sum_of_the_experts():
    expected = {}
    for name, adapter in experts().items():
        for module, matrix in dense(adapter).items():
            expected[module] = expected.get(module, 0) + SHARES[name] * matrix
    torch.testing.assert_close(dense(merge(shares=SHARES)), expected, **CLOSE)


@pytest.mark.parametrize(
    ("ours", "kind", "theirs"), [({}, "cat", {}), ({"rank": 3}, "svd", {"svd_rank": 3})], ids=["whole", "cut"]
)
def test_the_merger_equals_peft(tmp_path, ours, kind, theirs):
    expected = merged_by_peft(tmp_path, experts(), SHARES.values(), kind, **theirs)
    torch.testing.assert_close(dense(merge(shares=SHARES, **ours)), expected, **CLOSE)


def test_ranks_add_up_unless_they_are_cut():
    module = "model.layers.0.self_attn.q_proj"
    assert merge().deltas[module].rank == 2 + 4 + 3
    assert merge(rank=5).deltas[module].rank == 5


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": 1.0, "b": 1.0, "d": 1.0}, r"mixture\.shares: unknown expert \(d\); expected one of a, b, c"),
        ({"a": 1.0, "c": 1.0}, r"mixture\.shares: an expert without a share \(b\); expected all experts, or none"),
    ],
)
def test_shares_are_of_the_experts_that_are_there(shares, message):
    with pytest.raises(InputError, match=message):
        merge(shares=shares)


def test_a_share_that_is_no_number_is_refused():
    with pytest.raises(ValidationError, match="finite number"):
        Mixer(shares={"a": float("nan")})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"heads": {"score.weight": torch.ones(2, 2)}}, r"mixture:b: a head of its own cannot be merged \(score"),
        ({"dense": {"norm.weight": torch.ones(2)}}, r"mixture:b: the change is not low-rank \(norm"),
    ],
)
def test_what_is_not_a_low_rank_change_is_refused_by_name(part, message):
    given = experts()
    given["b"] = Adapter(given["b"].deltas, **part)
    with pytest.raises(InputError, match=message):
        Mixer().prepare_experts(given, seed=0)
