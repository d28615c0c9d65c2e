from dataclasses import replace

import pytest
import torch
from models import llama, trained_adapter
from peft_merges import dense, experts

from loratory.adapters.deltas import Adapter, LowRank
from loratory.adapters.methods.lora import Method
from loratory.mixers.methods.lora_lego import Mixer

CLOSE = {"rtol": 0, "atol": 1e-5}
BARE = {"reweight_output": False}


def merge(given, seed=0, **options) -> Adapter:
    (found,) = Mixer(**options).prepare_experts(given, seed).values()
    return found


def of_pairs(*pairs, scale=1.0) -> dict[str, Adapter]:
    """An expert of rank 1 for each (a, b)."""
    return {
        str(i): Adapter({"layer": LowRank(torch.tensor([a]), torch.tensor([b]).T, scale)})
        for i, (a, b) in enumerate(pairs)
    }


def total(given) -> dict[str, torch.Tensor]:
    found = {}
    for adapter in given.values():
        for module, matrix in dense(adapter).items():
            found[module] = found.get(module, 0) + matrix
    return found


def changed(given, change) -> dict[str, Adapter]:
    return {n: Adapter({m: change(delta) for m, delta in a.deltas.items()}) for n, a in given.items()}


@pytest.mark.parametrize("vectors", ["raw", "halves"])
def test_a_cluster_for_each_unit_is_the_exact_sum(vectors):
    given = experts()
    found = merge(given, rank=99, vectors=vectors, **BARE)
    torch.testing.assert_close(dense(found), total(given), **CLOSE)


def test_output_reweighting_is_the_root_of_the_rank_over_the_clusters():
    given, module = experts(), "model.layers.0.self_attn.q_proj"
    found = merge(given, rank=99).deltas[module].to_dense()
    torch.testing.assert_close(found, (4 / (2 + 4 + 3)) ** 0.5 * total(given)[module], **CLOSE)


def test_one_expert_is_itself():
    one = experts()["b"]
    torch.testing.assert_close(dense(merge({"x": one})), dense(one), **CLOSE)


def test_two_equal_experts_are_that_expert_and_not_twice_it():
    one = experts()["b"]
    torch.testing.assert_close(dense(merge({"x": one, "y": one})), dense(one), **CLOSE)


def test_the_order_of_ranks_does_not_matter():
    def turned(delta):
        return LowRank(delta.A.flip(0), delta.B.flip(1), delta.scale)

    given = experts()
    torch.testing.assert_close(dense(merge(changed(given, turned))), dense(merge(given)), **CLOSE)


def test_the_order_of_experts_does_not_matter():
    given = experts()
    turned = dict(reversed(given.items()))
    torch.testing.assert_close(dense(merge(turned)), dense(merge(given)), **CLOSE)


def test_ranks_4_and_16_merge_to_16():
    model = llama()
    given = {str(rank): trained_adapter(model, Method(rank=rank, alpha=8.0), rank) for rank in (4, 16)}
    assert {delta.rank for delta in merge(given).deltas.values()} == {16}


def test_the_same_seed_gives_the_same_merger():
    first, second = merge(experts(), seed=3), merge(experts(), seed=3)
    assert all(torch.equal(matrix, dense(second)[name]) for name, matrix in dense(first).items())


def test_scales_count_as_if_they_were_in_the_factors():
    def absorbed(delta):
        root = delta.scale**0.5
        return LowRank(root * delta.A, root * delta.B, 1.0)

    given = experts()
    torch.testing.assert_close(dense(merge(changed(given, absorbed))), dense(merge(given)), **CLOSE)
    doubled = changed(given, lambda delta: replace(delta, scale=2 * delta.scale))
    torch.testing.assert_close(
        dense(merge(doubled)), {module: 2 * matrix for module, matrix in dense(merge(given)).items()}, **CLOSE
    )


@pytest.mark.parametrize(("norm", "length"), [("inf", 4.0), ("2", (5 + 10**0.5) / 2)])
def test_a_centroid_has_the_mean_length_of_its_units(norm, length):
    given = of_pairs(([3.0, 0.0], [4.0]), ([1.0, 0.0], [3.0]))
    mean = torch.tensor([2.0, 0.0, 3.5])
    wanted = {"inf": (4.0 + 3.0) / 2, "2": length}[norm]
    unit = mean * wanted / torch.linalg.vector_norm(mean, float(norm))
    found = merge(given, norm=norm).deltas["layer"].to_dense()
    torch.testing.assert_close(found, torch.outer(unit[2:], unit[:2]), **CLOSE)


def test_near_units_share_a_cluster():
    near = ([1.0, 0.0], [2.0]), ([1.1, 0.0], [2.1])
    found = merge(of_pairs(*near, ([0.0, -8.0], [5.0])), rank=2, **BARE).deltas["layer"]
    expected = merge(of_pairs(*near)).deltas["layer"].to_dense() + torch.tensor([[0.0, -40.0]])
    torch.testing.assert_close(found.to_dense(), expected, **CLOSE)


def test_halves_of_length_1_cluster_directions_and_not_sizes():
    pairs = ([1.0, 0.0], [1.0]), ([9.0, 0.0], [9.0]), ([0.0, 1.0], [1.0])
    by_size = merge(of_pairs(*pairs), rank=2, norm="2", **BARE).deltas["layer"].to_dense()
    by_direction = merge(of_pairs(*pairs), rank=2, norm="2", vectors="halves", **BARE).deltas["layer"].to_dense()
    assert by_direction.allclose(torch.tensor([[25.0, 1.0]]), atol=1e-5)  # (1 + 9) / 2 squared, and the third alone
    assert by_size[0, 0] > 81  # the long one alone, the short two together


def test_opposite_units_cancel_and_rounding_is_not_blown_up():
    given = of_pairs(([0.3, 0.7], [0.2]), ([-0.3, -0.70000006], [-0.20000002]))
    assert not merge(given).deltas["layer"].to_dense().any()


@pytest.mark.parametrize("other", [([-1.0, 2.0], [-3.0]), ([0.5, -1.0], [6.0])], ids=["opposite", "unbalanced"])
def test_the_canonical_form_keeps_units_of_one_function(other):
    given, one = of_pairs(([1.0, -2.0], [3.0]), other), torch.tensor([[3.0, -6.0]])
    torch.testing.assert_close(merge(given, canonical=True).deltas["layer"].to_dense(), one, **CLOSE)
    assert not merge(given).deltas["layer"].to_dense().allclose(one, atol=1e-2)


def test_a_dead_unit_is_harmless_in_every_form():
    given = of_pairs(([0.0, 0.0], [0.0]), ([1.0, 2.0], [1.0]))
    for options in ({}, {"canonical": True}, {"vectors": "halves"}):
        found = merge(given, rank=2, **BARE, **options).deltas["layer"].to_dense()
        torch.testing.assert_close(found, torch.tensor([[1.0, 2.0]]), **CLOSE)


def test_a_negative_scale_keeps_its_sign():
    given = of_pairs(([1.0, 2.0], [3.0]), scale=-2.0)
    torch.testing.assert_close(merge(given).deltas["layer"].to_dense(), torch.tensor([[-6.0, -12.0]]), **CLOSE)
