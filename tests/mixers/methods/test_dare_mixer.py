import pytest
import torch
from peft_merges import dense, experts, merged_by_peft

from loratory.adapters.deltas import Adapter, LowRank
from loratory.mixers.methods import weighted_merge
from loratory.mixers.methods.dare import Mixer

WHOLE = 64  # a rank that cuts nothing off
SHARES = {"a": 0.5, "b": 1.5, "c": 1.0}
CLOSE = {"rtol": 0, "atol": 1e-5}


def merge(given, seed=0, **options) -> Adapter:
    (found,) = Mixer(**options).prepare_experts(given, seed).values()
    return found


@pytest.mark.parametrize("combine", ["linear", "ties"])
def test_without_drops_the_merger_equals_peft(tmp_path, combine):
    expected = merged_by_peft(tmp_path, experts(), SHARES.values(), f"dare_{combine}_svd", density=1.0, svd_rank=5)
    ours = merge(experts(), shares=SHARES, density=1.0, combine=combine, rank=5)
    torch.testing.assert_close(dense(ours), expected, **CLOSE)


def test_without_drops_the_linear_merger_is_the_weighted_sum():
    (summed,) = weighted_merge.Mixer().prepare_experts(experts(), 0).values()
    torch.testing.assert_close(dense(merge(experts(), density=1.0)), dense(summed), **CLOSE)


def test_weights_are_dropped_or_made_larger_in_return():
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).abs() + 1
    given = {"x": Adapter({"layer": LowRank(torch.eye(64), matrix, 1.0)})}
    ratios = merge(given, density=0.2, rank=WHOLE).deltas["layer"].to_dense() / matrix
    kept = ratios > 2.5
    torch.testing.assert_close(ratios, kept * 5.0, rtol=0, atol=1e-3)
    assert abs(kept.float().mean() - 0.2) < 4 * (0.2 * 0.8 / 64**2) ** 0.5


@pytest.mark.parametrize("combine", ["linear", "ties"])
def test_drops_depend_on_seed_and_module_alone(combine):
    def same(one, other):
        return torch.equal(one.to_dense(), other.to_dense())

    a = experts()["a"].deltas["model.layers.0.self_attn.q_proj"]
    alone = {"x": Adapter({"m": a})}
    beside = {"x": Adapter({"l": a, "m": a, "n": a})}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = merge(beside, combine=combine).deltas
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(merge(alone, combine=combine).deltas["m"], first["m"])
    assert not same(first["l"], first["m"])
    assert not same(merge(alone, seed=1, combine=combine).deltas["m"], first["m"])


def test_experts_are_dropped_from_apart():
    matrix = torch.ones(64, 64)
    given = {name: Adapter({"layer": LowRank(torch.eye(64), matrix, 1.0)}) for name in "xy"}
    found = merge(given, density=0.5, rank=WHOLE).deltas["layer"].to_dense().round()
    assert [round(float((found == value).float().mean()), 1) for value in (0, 1, 2)] == [0.2, 0.5, 0.2]
