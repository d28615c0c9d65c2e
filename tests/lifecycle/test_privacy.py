"""Private steps: clipped together, noised once, counted by Opacus; and only where examples are kept apart."""

import math

import pytest
import torch
from opacus.accountants import RDPAccountant
from test_federated import adapter_tensors, constant, federate, learn, same  # noqa: F401

from loratory.errors import InputError
from loratory.lifecycle import client
from loratory.lifecycle.privacy import Privacy, refuse_coupled_layers, take_private_step
from loratory.lifecycle.procedures.federated import Procedure

DP = ("ffa_lora_dp", "fedavg_lora_dp")
SIZES = {"first": (3, 2), "second": (50,)}


def parameters() -> dict:
    return {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SIZES.items()}


def optimizer_of(trained, norm=1.0, noise=0.0, batch=4, rate=1.0, seed=0):
    """A private optimizer with given noise."""
    from opacus.optimizers import DPOptimizer

    made = torch.optim.SGD(trained.values(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    return DPOptimizer(
        made, noise_multiplier=noise, max_grad_norm=norm, expected_batch_size=batch, generator=generator
    )


def random_gradients(n, scale=1.0) -> list:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator) * scale for shape in SIZES.values()] for _ in range(n)]


def norm_of(gradient) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in gradient))


def test_without_noise_and_with_a_norm_that_none_has_a_private_step_is_a_plain_one():
    trained, gradients = parameters(), random_gradients(4)
    take_private_step(optimizer_of(trained, norm=1e6), trained, gradients)
    for parameter, parts in zip(trained.values(), zip(*gradients)):
        torch.testing.assert_close(parameter.detach(), -torch.stack(parts).mean(0), atol=1e-6, rtol=1e-5)


def test_each_examples_gradient_is_cut_to_the_norm_of_all_its_parts_together():
    for scale in (0.01, 1.0, 100.0):
        for gradient in random_gradients(3, scale):
            trained = parameters()
            take_private_step(optimizer_of(trained, norm=0.5, batch=1), trained, [gradient])
            moved = [-p.detach() for p in trained.values()]
            assert norm_of(moved) <= 0.5 + 1e-6
            factor = min(1.0, 0.5 / norm_of(gradient))
            for part, whole in zip(moved, gradient):
                torch.testing.assert_close(part, factor * whole, atol=1e-5, rtol=1e-4)
    trained, gradients = parameters(), random_gradients(8, 100.0)
    take_private_step(optimizer_of(trained, norm=0.5, batch=8), trained, gradients)
    clipped = [[part * 0.5 / norm_of(gradient) for part in gradient] for gradient in gradients]
    for parameter, parts in zip(trained.values(), zip(*clipped)):
        expected = -torch.stack(parts).mean(0)  # and not the mean cut to the norm
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "gradients", [[], [[torch.zeros(s) for s in SIZES.values()]] * 3], ids=["none_drawn", "zeros"]
)
def test_without_a_gradient_a_step_is_noise_of_rate_times_sigma_times_norm_over_batch(gradients):
    moved = []
    for seed in range(200):
        trained = parameters()
        take_private_step(optimizer_of(trained, 0.7, 1.3, batch=5, rate=0.2, seed=seed), trained, gradients)
        moved.append(torch.cat([p.detach().flatten() for p in trained.values()]))
    found = torch.stack(moved)
    expected = 0.2 * 1.3 * 0.7 / 5
    assert float(found.std()) == pytest.approx(expected, rel=0.03)  # 11,200 draws: 4.5 standard errors
    assert abs(float(found.mean())) < 5 * expected / math.sqrt(found.numel())


def test_noise_on_b_is_noise_on_the_update_with_the_covariance_of_a():
    """Each row of ΔW has covariance (η s σ C / b)² Aᵀ A."""
    generator = torch.Generator().manual_seed(3)
    a, scale, rows = torch.randn(2, 3, generator=generator), 2.0, 4000
    trained = {"B": torch.nn.Parameter(torch.zeros(rows, 2))}
    take_private_step(optimizer_of(trained, 0.5, 1.1, batch=4, rate=0.3), trained, [])
    update = scale * trained["B"].detach() @ a
    expected = (0.3 * scale * 1.1 * 0.5 / 4) ** 2 * a.T @ a
    found = update.T @ update / rows
    assert float((found - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("arm", DP)
def test_a_private_client_without_noise_and_norm_learns_as_a_plain_one(federate, open_room, monkeypatch, arm):  # noqa: F811
    """All its examples are drawn, and all have as many targets, so that a mean of means is the mean."""
    monkeypatch.setattr(Privacy, "noise_multiplier", lambda self, examples: 0.0)
    room = open_room("llama", training=constant(4, tokens=1000))
    options = {"private_batch": 4, "largest_norm": 1e6}
    private, _ = learn(federate(arm, room=room, **options))
    plain, _ = learn(federate(arm.removesuffix("_dp"), room=room))
    assert private.keys() == plain.keys() and any(plain[name].any() for name in plain if name[-1] == "B")
    assert all(torch.allclose(private[name], plain[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("family", ["llama", "whisper"])
def test_gradients_of_examples_sum_to_that_of_their_batch(federate, open_room, monkeypatch, family):  # noqa: F811
    seen = []

    def note(optimizer, trained, gradients):
        seen.append([[part.clone() for part in each] for each in gradients])

    monkeypatch.setattr(client, "take_private_step", note)
    room = open_room(family, training=constant(1))
    training = federate("fedavg_lora_dp", ((0, 1, 2, 3),), room=room, private_batch=4)
    with training.attached_adapter() as layers:
        one = training.make_client(0, layers)
        one.take_steps(range(1))
        total, targets = room.base.loss(room.base.model, room.base.collate(room.base.items[:4]))
        whole = torch.autograd.grad(total / targets, [*training.trained.values()])
    assert len(seen[0]) == 4
    for part, parts in zip(whole, zip(*seen[0])):
        torch.testing.assert_close(torch.stack(parts).mean(0), part, atol=1e-6, rtol=1e-4)


def test_no_two_steps_clients_or_arms_share_their_noise(federate, open_room, monkeypatch):  # noqa: F811
    seeds = []
    make = Privacy.private_optimizer

    def note(self, optimizer, examples, generator):
        seeds.append(generator.initial_seed())
        return make(self, optimizer, examples, generator)

    monkeypatch.setattr(Privacy, "private_optimizer", note)
    for arm in DP:
        learn(federate(arm, room=open_room("llama", training=constant(4))))
    assert len(seeds) == len({*seeds}) == 2 * 3 * 4


def test_epsilon_is_that_of_opacus_for_the_rate_the_noise_and_the_steps():
    privacy = Privacy(epsilon=3.0, delta=1e-5, largest_norm=1.0, batch=10, steps=100)
    assert privacy.sampling_rate(200) == 0.05 and privacy.sampling_rate(4) == 1
    accountant = RDPAccountant()
    for _ in range(100):
        accountant.step(noise_multiplier=privacy.noise_multiplier(200), sample_rate=0.05)
    assert privacy.spent_epsilon(200, 100) == pytest.approx(accountant.get_epsilon(1e-5))
    assert 2.9 < privacy.spent_epsilon(200, 100) <= 3.0
    assert 0 == privacy.spent_epsilon(200, 0) < privacy.spent_epsilon(200, 50) < privacy.spent_epsilon(200, 100)
    assert privacy.noise_multiplier(40) > privacy.noise_multiplier(200), "a client with less needs more noise"


@pytest.mark.parametrize("arm", DP)
def test_a_client_has_spent_what_it_was_asked_for_answered_or_not(federate, open_room, monkeypatch, arm):  # noqa: F811
    room = open_room("llama", training=constant(4))
    _, whole = learn(federate(arm, room=room))
    take = client.AdapterClient.take_steps

    def fail(self, steps):
        losses = take(self, steps)
        if self.number == 1:
            raise RuntimeError
        return losses

    monkeypatch.setattr(client.AdapterClient, "take_steps", fail)
    _, measures = learn(federate(arm, room=room))
    assert measures["clients lost"] == 1
    assert measures["epsilon"] == whole["epsilon"] and 5.9 < whole["epsilon"] <= 6 and whole["delta"] == 1e-5


def test_a_private_client_sends_its_noised_tensors_and_nothing_else(federate):  # noqa: F811
    training = federate(DP[0])
    with training.attached_adapter() as layers:
        one = training.make_client(0, layers)
        said = one.fit(client.FitIns(client.pack_tensors(training.trained), {"first": 0, "stop": 1}))
        assert said.metrics == {} and said.num_examples == 4


def test_every_example_is_drawn_for_itself_at_the_rate():
    privacy = Privacy(epsilon=3.0, delta=1e-5, largest_norm=1.0, batch=5, steps=10)
    generator = torch.Generator().manual_seed(0)
    drawn = [privacy.draw_examples(20, generator) for _ in range(400)]
    lengths = torch.tensor([len(each) for each in drawn], dtype=torch.float)
    assert all(len(each) == len({*each}) for each in drawn)
    assert float(lengths.mean()) == pytest.approx(5, abs=0.4)
    assert float(lengths.var()) == pytest.approx(20 * 0.25 * 0.75, rel=0.3), "of binomial numbers, and no fixed one"


@pytest.mark.parametrize(
    "layer", [torch.nn.BatchNorm1d(4), torch.nn.SyncBatchNorm(4), torch.nn.InstanceNorm1d(4, track_running_stats=True)]
)
def test_layers_that_mix_examples_are_refused_frozen_or_not(federate, open_room, layer):  # noqa: F811
    room = open_room("llama", training=constant(2))
    room.base.model.model.layers[0].post_attention_layernorm = layer.requires_grad_(False)
    line = rf"lifecycle.smaller: ffa_lora_dp: model.layers.0.post_attention_layernorm mixes.*{type(layer).__name__}"
    with pytest.raises(InputError, match=line):
        learn(federate(DP[0], room=room))
    assert adapter_tensors(room.base.model) == {}, "the base is left as it was"


def test_layers_that_keep_examples_apart_are_not_refused():
    kept = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.GroupNorm(2, 4), torch.nn.InstanceNorm1d(4))
    refuse_coupled_layers(kept, "here")


def test_a_promise_that_is_none_or_that_nothing_keeps_is_refused(open_room, monkeypatch):
    monkeypatch.setattr("opacus.accountants.utils.MAX_SIGMA", 50)
    room = open_room("llama", training=constant(2))
    items = [room.base.items]
    with pytest.raises(InputError, match=r"lifecycle.smaller.delta: δ is no promise to a client of 12 examples"):
        Procedure(delta=0.1).federations(None, room, items)
    with pytest.raises(InputError, match="no noise is enough for 10 private steps"):
        Privacy(epsilon=1e-3, delta=1e-5, largest_norm=1.0, batch=10, steps=10).noise_multiplier(20)
    assert {*Procedure(epsilon=None).federations(None, room, items)} == {"fedavg_lora", "ffa_lora"}
