"""Adapters at lower ranks, and plain LoRAs cut by SVD to hold them against."""

import pytest
import torch

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.ranks import RankCut, cut_adapter, cut_controls, cut_sources, rank_cuts
from loratory.config import adapter_entry


def entries(**methods):
    return {name: adapter_entry(options) for name, options in methods.items()}


LORA, DYLORA = {"method": "lora", "rank": 8}, {"method": "dylora", "rank": 8}


def low_rank(rank=6, scale=2.5) -> deltas.LowRank:
    generator = torch.Generator().manual_seed(0)
    return deltas.LowRank(
        torch.randn(rank, 12, generator=generator), torch.randn(10, rank, generator=generator), scale
    )


def trained(delta, **options) -> deltas.Adapter:
    return deltas.Adapter({"layer": delta}, run={"run_info": {"peft_config": options}})


def test_a_method_for_many_ranks_stands_at_powers_of_two_beside_a_plain_lora_of_full_rank():
    cuts = rank_cuts(entries(lora=LORA, dylora=DYLORA, galore={"method": "galore"}), "lora")
    assert cuts == [RankCut("dylora", rank, "lora") for rank in (1, 2, 4)]
    assert cut_sources(cuts[:1]) == {"dylora (rank 1)": ("dylora", 1), "lora (SVD to rank 1)": ("lora", 1)}
    assert cut_controls(cuts[1:]) == {
        "dylora": {"dylora (rank 2)": "lora (SVD to rank 2)", "dylora (rank 4)": "lora (SVD to rank 4)"}
    }


@pytest.mark.parametrize(
    ("options", "ranks"), [({"rank": 1}, ()), ({"rank": 6}, (1, 2, 4)), ({"rank": 8, "export_rank": 3}, (1, 2))]
)
def test_ranks_are_those_below_the_stored_one(options, ranks):
    assert [cut.rank for cut in rank_cuts(entries(a={"method": "dylora"} | options), "a")] == list(ranks)


def test_the_lora_to_be_cut_is_the_reference_or_another_of_at_least_the_rank_or_none():
    small, large = {"method": "lora", "rank": 4}, {"method": "lora", "rank": 16}
    chosen = lambda first, **given: {cut.control for cut in rank_cuts(entries(**given, dylora=DYLORA), first)}  # noqa: E731
    assert chosen("large", lora=LORA, large=large) == {"large"}
    assert chosen("ffa", lora=LORA, ffa={"method": "ffa_lora"}) == {"lora"}
    assert chosen("small", small=small, large=large) == {"large"}
    assert chosen("small", small=small) == {None}


def test_methods_share_a_control_and_each_shows_it():
    cuts = rank_cuts(entries(lora=LORA, a=DYLORA, b=DYLORA), "lora")
    assert len(cut_sources(cuts)) == 9
    assert set(cut_controls(cuts)["a"].values()) == set(cut_controls(cuts)["b"].values())


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_lora_is_cut_to_the_nearest_change_of_the_rank(rank):
    delta = low_rank()
    cut = cut_adapter(trained(delta, method="lora", rank=6), rank).deltas["layer"]
    left, values, right = torch.linalg.svd(delta.to_dense())
    assert cut.rank == rank
    best = left[:, :rank] @ values[:rank].diag() @ right[:rank]
    torch.testing.assert_close(cut.to_dense(), best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_dylora_is_cut_to_what_it_would_store_at_that_rank(rank):
    method = registry.load_module("method", "dylora").Method
    tensors = {"A": low_rank().A, "B": low_rank().B}
    options = {"rank": 6, "alpha": 9.0}
    whole = trained(method(**options).weight_delta(tensors, None), method="dylora", **options)
    stored = method(**options, export_rank=rank).weight_delta(tensors, None)
    cut = cut_adapter(whole, rank).deltas["layer"]
    torch.testing.assert_close(cut.to_dense(), stored.to_dense())
    assert cut.rank == stored.rank == rank


def test_every_method_that_names_lower_ranks_stores_a_low_rank_that_can_be_cut():
    for name in registry.registered_names("method"):
        fields = registry.load_module("method", name).Method.model_fields
        entry = adapter_entry({"method": name} | ({"type": "loha"} if "type" in fields else {}))
        assert all(1 <= rank < entry.rank for rank in entry.lower_ranks)
