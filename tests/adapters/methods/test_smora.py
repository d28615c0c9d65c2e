"""SMoRA (arXiv:2501.15103)."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.smora import Method

ROW = Row(
    {"rank": 8, "active": 4, "rank_partition": 2},
    lambda shapes, model: sum(8 * (out + inner) + 4 * inner for out, inner in shapes),
    merges=False,
)


def layer(method, seed=0, out=6, inner=7) -> dict:
    """Tensors of a layer that looks trained."""
    generator = torch.Generator().manual_seed(seed)
    tensors = method.initial_tensors(torch.zeros(out, inner), generator)
    tensors["B"].normal_(generator=generator)
    tensors["bias"].normal_(generator=generator).mul_(0.1)
    return tensors


def tokens(seed=1):
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed))


def test_all_ranks_with_equal_scores_are_a_plain_lora():
    method, x = Method(rank=4, active=4, alpha=8.0), tokens()
    tensors = layer(method) | {"R": torch.zeros(4, 7), "bias": torch.zeros(4)}
    torch.testing.assert_close(method.forward(x, tensors, False), 8 / 4 * x @ tensors["A"].T @ tensors["B"].T)


def test_the_chosen_ranks_alone_gathered_token_by_token_give_the_same():
    method, x = Method(rank=8, active=3, alpha=6.0), tokens()
    t, found = layer(method), []
    for token in x.flatten(0, 1):
        scores = torch.sigmoid(t["R"] @ token) + t["bias"]
        chosen = scores.argsort(descending=True)[:3]
        gate = 3 * scores[chosen] / scores[chosen].sum()
        found.append(6 / 3 * t["B"][:, chosen] @ (gate * (t["A"][chosen] @ token)))
    torch.testing.assert_close(method.forward(x, t, False).flatten(0, 1), torch.stack(found))


@pytest.mark.parametrize("partition", [1, 2])
def test_gates_sum_to_the_number_of_active_ranks_and_no_others_are_open(partition):
    method = Method(rank=8, active=4, rank_partition=partition)
    every = method.group_gates(tokens(), layer(method)).repeat_interleave(partition, -1)
    torch.testing.assert_close(every.sum(-1), torch.full((2, 5), 4.0))
    assert ((every > 0).sum(-1) == 4).all()


def test_grouped_ranks_are_an_explicit_mixture_of_loras():
    method, x = Method(rank=6, active=4, rank_partition=2, alpha=8.0), tokens()
    t = layer(method)
    gates = method.group_gates(x, t)
    experts = [(t["A"][2 * e : 2 * e + 2], t["B"][:, 2 * e : 2 * e + 2]) for e in range(3)]
    mixture = sum(gates[..., e : e + 1] * (8 / 4 * x @ a.T @ b.T) for e, (a, b) in enumerate(experts))
    torch.testing.assert_close(method.forward(x, t, False), mixture)


def test_a_bias_far_below_zero_leaves_weights_positive():
    method = Method(rank=4, active=2)
    gates = method.group_gates(tokens(), layer(method) | {"bias": torch.tensor([0.0, -9, -9, -9])})
    torch.testing.assert_close(gates.sum(-1), torch.full((2, 5), 2.0))
    assert (gates >= 0).all()


def balancing_session(step=0.02):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 6)).requires_grad_(False)
    method = Method(rank=8, active=2, bias_step=step)
    return method, type("Session", (), {"layers": core.attach(model, method, 0)}), model


def spread(gates) -> float:
    load = (gates > 0).flatten(0, -2).sum(0).float()
    return float(load.max() / load.min().clamp(min=1))


def test_the_bias_evens_out_the_load():
    method, session, model = balancing_session()
    x = torch.randn(64, 7, generator=torch.Generator().manual_seed(2)) + 0.5
    adapted = session.layers["0"]
    before = spread(method.group_gates(x, adapted.tensors))
    for step in range(60):
        model(x).sum().backward()
        method.after_step(session, step)
    assert spread(method.group_gates(x, adapted.tensors)) < 0.5 * before
    assert not adapted.tensors["counts"].any()


def test_counting_is_of_training_and_of_tokens_that_the_loss_depends_on():
    method, session, model = balancing_session()
    x, counts = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(2)), session.layers["0"].tensors["counts"]
    model.eval()
    model(x).sum().backward()
    with torch.no_grad():
        model.train()
        model(x)
    assert not counts.any()
    model(x)[:, :3].sum().backward()
    expected = (method.group_gates(x[:, :3], session.layers["0"].tensors) > 0).flatten(0, 1).sum(0)
    assert torch.equal(counts, expected.float()) and counts.sum() == 4 * 3 * 2


def test_the_bias_moves_by_its_step_against_the_load():
    method, session, _ = balancing_session(step=0.5)
    tensors = session.layers["0"].tensors
    tensors["counts"].copy_(torch.tensor([4.0, 0, 2, 2, 2, 2, 2, 2]))
    method.after_step(session, 0)
    assert tensors["bias"].tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0]


def test_the_bias_learns_without_gradients_and_rests_in_evaluation(tmp_path):
    toy = FAMILIES["llama"]()
    session = train(toy, Method(**ROW.options), tmp_path)
    biases = {name: adapted.tensors["bias"].clone() for name, adapted in session.layers.items()}
    assert all(bias.any() and not bias.requires_grad for bias in biases.values())
    assert not any(name.endswith("bias") for name in core.trainable_parameters(toy.model))
    toy.output()
    assert all(torch.equal(adapted.tensors["bias"], biases[name]) for name, adapted in session.layers.items())


def test_router_and_factors_all_get_gradients():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(**ROW.options))
    for adapted in session.layers.values():
        adapted.adapter["B"].data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    session.loss(session.batch(0)).backward()
    assert all(adapted.adapter[key].grad.any() for adapted in session.layers.values() for key in ("A", "B", "R"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active": 65}, "at most rank"),
        ({"rank": 9, "active": 3, "rank_partition": 2}, "rank is 9, expected a multiple of 2"),
        ({"rank": 8, "active": 3, "rank_partition": 2}, "active is 3, expected a multiple of 2"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Method(**options)
