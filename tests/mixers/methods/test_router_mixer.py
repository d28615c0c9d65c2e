"""The classifier of domains."""

import pytest
import torch
from small import CLOSE, IDS, alone, given, gradients, mixed

from loratory.mixers.methods.router import Mixer
from loratory.training.mixture import mixer_penalty

REAL = torch.ones_like(IDS, dtype=torch.bool)


@torch.no_grad()
@pytest.mark.parametrize("index", range(2))
def test_the_named_expert_alone_answers(index):
    mixture = mixed(Mixer())
    mixture.gate["tokens"].weight.zero_()
    mixture.gate["tokens"].bias.copy_(torch.eye(2)[index] * 0.1)
    torch.testing.assert_close(mixture(input_ids=IDS).logits, alone(given()["ab"[index]])(IDS).logits, **CLOSE)


def test_its_loss_is_the_cross_entropy_of_the_domain_and_teaches_the_gate_alone():
    mixture = mixed(Mixer()).train()
    out = mixture(input_ids=IDS)
    states = mixture.bare_states({"input_ids": IDS})["tokens"].mean(1)
    logits = mixture.gate["tokens"](states)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 1]))
    found = mixer_penalty(mixture, REAL, 1)
    torch.testing.assert_close(found, expected)
    assert not out.logits.requires_grad  # the language model's loss says nothing to it
    theirs, ours = gradients(mixture, expected), gradients(mixture, found)
    assert ours.keys() == {"gate.tokens.weight", "gate.tokens.bias"}
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient)


def test_a_gate_that_is_sure_and_wrong_still_learns():
    logits = torch.tensor([[[80.0, 0.0]]], requires_grad=True)
    Mixer().routing_penalty(logits.softmax(-1), 1).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[1.0, -1.0]]]))


def test_it_learns_to_tell_domains_apart():
    mixture, generator = mixed(Mixer()).train(), torch.Generator().manual_seed(0)
    mixture.gate["tokens"].weight.data.zero_()  # so that it names the first for both
    rows = [torch.randint(3, 13, (64, 16), generator=generator) + 100 * domain for domain in (0, 1)]
    optimizer = torch.optim.AdamW(mixture.trainable_parameters().values(), lr=0.03)
    for _ in range(20):
        for domain, ids in enumerate(rows):
            mixture(input_ids=ids[:56])
            mixer_penalty(mixture, torch.ones_like(ids[:56], dtype=torch.bool), domain).backward()
        optimizer.step()
        optimizer.zero_grad()
    for domain, ids in enumerate(rows):
        assert mixture.token_routing(input_ids=ids[56:]).argmax(-1).flatten().tolist() == [domain] * 8


@torch.no_grad()
def test_what_is_written_does_not_change_the_choice():
    mixture = mixed(Mixer())
    prompt = torch.arange(7).expand(2, 7) < 3
    expected = mixture.token_routing(input_ids=IDS[:, :3])
    for last in range(4, 8):
        found = mixture.token_routing(input_ids=IDS[:, :last], prompt=prompt[:, :last])
        assert torch.equal(found, expected)
        torch.testing.assert_close(mixture.routing_weights["tokens"].sum(-1), torch.ones(2, 1, 1))
