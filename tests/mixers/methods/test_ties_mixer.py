import pytest
import torch
from peft_merges import dense, experts, merged_by_peft

from loratory.adapters.deltas import Adapter, LowRank
from loratory.mixers.methods.ties import Mixer

WHOLE = 64  # a rank that cuts nothing off
SHARES = {"a": 0.5, "b": 1.5, "c": 1.0}


def merge(given, **options) -> Adapter:
    (found,) = Mixer(**options).prepare_experts(given, seed=0).values()
    return found


def of_matrices(*matrices) -> dict[str, Adapter]:
    return {
        str(i): Adapter({"layer": LowRank(torch.eye(len(rows[0])), torch.tensor(rows), 1.0)})
        for i, rows in enumerate(matrices)
    }


@pytest.mark.parametrize("elect", ["total", "frequency"])
@pytest.mark.parametrize("rank", [5, None])
def test_the_merger_equals_peft(tmp_path, elect, rank):
    ours = merge(experts(), shares=SHARES, density=0.4, elect=elect, rank=rank)
    expected = merged_by_peft(
        tmp_path,
        experts(),
        SHARES.values(),
        "ties_svd",
        density=0.4,
        majority_sign_method=elect,
        svd_rank=rank or 32,  # the least width of the base: nothing is cut
    )
    if rank is None:
        assert ours.deltas["model.layers.0.self_attn.q_proj"].rank == 2 + 4 + 3
        expected = {module: cut(matrix, ours.deltas[module].rank) for module, matrix in expected.items()}
    torch.testing.assert_close(dense(ours), expected, rtol=0, atol=1e-5)


def cut(matrix, rank):
    u, s, vt = torch.linalg.svd(matrix)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]


def test_small_weights_are_trimmed_a_sign_is_elected_and_those_that_agree_are_averaged():
    given = of_matrices([[4.0, -1.0], [3.0, 0.1]], [[2.0, 5.0], [-9.0, 0.2]], [[-1.5, -2.0], [4.0, 0.3]])
    # kept (half of each): 4 . / 3 .    . 5 / -9 .    . -2 / 4 .
    total = merge(given, density=0.5, rank=WHOLE).deltas["layer"].to_dense()
    torch.testing.assert_close(total, torch.tensor([[4.0, 5.0], [-9.0, 0.0]]))
    frequent = merge(given, density=0.5, elect="frequency", rank=WHOLE).deltas["layer"].to_dense()
    torch.testing.assert_close(frequent, torch.tensor([[4.0, 5.0], [3.5, 0.0]]))


def test_shares_weigh_those_that_agree():
    given = of_matrices([[4.0]], [[2.0]], [[-1.0]])
    found = merge(given, shares={"0": 1.0, "1": 3.0, "2": 100.0}, density=1.0).deltas["layer"].to_dense()
    torch.testing.assert_close(found, torch.tensor([[(4.0 + 3 * 2.0) / 2]]))


def test_two_equal_experts_are_that_expert_trimmed():
    one = experts()["a"]
    twice = merge({"x": one, "y": one}, density=1.0)
    torch.testing.assert_close(dense(twice), dense(one), rtol=0, atol=1e-5)
