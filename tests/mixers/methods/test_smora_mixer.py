"""SMoRA's router over trained experts (arXiv:2501.15103)."""

import pytest
import torch
from small import CLOSE, IDS, change, given, merged, mixed

from loratory.mixers.methods.smora import Mixer

UP = "model.layers.1.mlp.up_proj"  # ranks 2 and 4


@torch.no_grad()
def test_all_ranks_with_equal_scores_are_the_sum_of_the_experts():
    mixture = mixed(Mixer(active=99))
    for parameter in mixture.gate.parameters():
        parameter.zero_()
    expected = merged({"a": 1.0, "b": 1.0}, given())(IDS).logits
    torch.testing.assert_close(mixture(input_ids=IDS).logits, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("active", [1, 3, 6])
def test_the_chosen_ranks_alone_gathered_token_by_token_give_the_same(active):
    mixture = mixed(Mixer(active=active))
    x, found = change(mixture, UP, input_ids=IDS)
    router = mixture.gate["tokens"][mixture.layers[UP].slot].weight
    deltas = [adapter.deltas[UP] for adapter in given().values()]
    a = torch.cat([delta.A for delta in deltas])
    b = torch.cat([delta.scale * delta.B for delta in deltas], 1)
    choices = set()
    for token, added in zip(x.flatten(0, 1), found.flatten(0, 1)):
        scores = torch.sigmoid(router @ token)
        chosen = scores.argsort(descending=True)[:active]
        gates = active * scores[chosen] / scores[chosen].sum()
        torch.testing.assert_close(added, b[:, chosen] @ (gates * (a[chosen] @ token)), **CLOSE)
        choices.add(tuple(sorted(chosen.tolist())))
    assert len(choices) > 1 or active == 6


@torch.no_grad()
def test_gates_sum_to_the_number_of_active_ranks_and_no_others_are_open():
    mixture = mixed(Mixer(active=3))
    mixture(input_ids=IDS)
    for name, gates in mixture.applied.items():
        ranks = len(mixture.layers[name].owner)
        torch.testing.assert_close(gates.sum(-1), torch.full((2, 7), float(min(3, ranks))))
        assert ((gates > 0).sum(-1) == min(3, ranks)).all()


@torch.no_grad()
def test_ranks_that_are_wanted_alike_within_an_expert_are_a_mixture_of_whole_experts():
    mixture = mixed(Mixer(active=6))
    router = mixture.gate["tokens"][mixture.layers[UP].slot].weight
    router.copy_(router[[0, 0, 5, 5, 5, 5]])
    x, found = change(mixture, UP, input_ids=IDS)
    u = torch.sigmoid(x @ router[[0, 5]].T)
    gates = 6 * u / (2 * u[..., :1] + 4 * u[..., 1:])
    parts = [x @ adapter.deltas[UP].to_dense().T for adapter in given().values()]
    torch.testing.assert_close(found, gates[..., :1] * parts[0] + gates[..., 1:] * parts[1], **CLOSE)
    share = mixture.expert_means(mixture.layers[UP], mixture.applied[UP])
    torch.testing.assert_close(share, gates)
