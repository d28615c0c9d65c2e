"""The mixer contract: seven identities that every registered mixer passes."""

from typing import ClassVar

import pytest
import torch
from models import causal_base, continued, draw_gate, llama, opinionated, trained_adapter

from loratory import registry
from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError
from loratory.evaluation.controls import ShuffledMixer
from loratory.mixers.checks import check_trained_experts
from loratory.mixers.contract import Mixer
from loratory.mixers.core import Mixture
from loratory.mixers.store import open_mixture, save_mixture
from loratory.training.mixture import mixer_penalty

IDS = torch.arange(2 * 9).view(2, 9) % 40 + 3
CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = registry.registered_names("mixer")


class Fixed(Mixer):
    """Weights given by the test."""

    reads: ClassVar[str] = "nothing"
    values: list[float]

    def routing_weights(self, gate, seen, sizes):
        return torch.tensor(self.values).view(1, 1, 1, -1)


def experts(model=None) -> dict:
    """Three experts of unequal ranks, scales and targets."""
    model = model or llama()
    return {
        "a": trained_adapter(model, Method(rank=2, alpha=3.0), 1),
        "b": trained_adapter(model, Method(rank=4, alpha=4.0, target_modules=("q_proj", "down_proj")), 2),
        "c": trained_adapter(model, Method(rank=3, alpha=1.0, target_modules=("v_proj", "up_proj")), 3),
    }


def mixed(mixer, order="abc", model=None) -> Mixture:
    found = experts()
    made = mixer.prepare_experts({name: found[name] for name in order}, seed=4)
    mixture = Mixture(model or llama(), made, mixer, domains=list(order))
    mixture.domain = 1
    return opinionated(mixture).eval()


def alone(name: str):
    model = llama()
    core.apply(model, experts()[name], name)
    return model


@torch.no_grad()
@pytest.mark.parametrize("index", range(3))
def test_one_hot_weights_are_that_expert_alone(index):
    values = [float(i == index) for i in range(3)]
    torch.testing.assert_close(
        mixed(Fixed(values=values))(input_ids=IDS).logits, alone("abc"[index])(IDS).logits, **CLOSE
    )


@torch.no_grad()
def test_zero_weights_are_the_base():
    assert torch.equal(mixed(Fixed(values=[0.0, 0.0, 0.0]))(input_ids=IDS).logits, llama()(IDS).logits)


@torch.no_grad()
def test_constant_weights_are_the_merged_weight():
    values = [0.2, 0.5, -0.3]
    merged = llama()
    for value, adapter in zip(values, experts().values()):
        for name, delta in adapter.deltas.items():
            merged.get_submodule(name).weight.data += value * delta.to_dense()
    torch.testing.assert_close(mixed(Fixed(values=values))(input_ids=IDS).logits, merged(IDS).logits, **CLOSE)


@torch.no_grad()
def test_renumbering_experts_together_with_the_gate_changes_nothing():
    mixer = registry.load_module("mixer", "xlora").Mixer()
    first, second = mixed(mixer), mixed(mixer, "cab")
    for theirs, ours in zip(second.gate.parameters(), first.gate.parameters()):
        rows = ours.data.unflatten(0, (-1, 3))[:, [2, 0, 1]]
        theirs.data.copy_(rows.flatten(0, 1))
    torch.testing.assert_close(second(input_ids=IDS).logits, first(input_ids=IDS).logits, **CLOSE)
    torch.testing.assert_close(second.applied["tokens"], first.applied["tokens"][..., [2, 0, 1]], **CLOSE)


@pytest.mark.parametrize("kind", [k for k in KINDS if registry.load_module("mixer", k).Mixer.trained])
def test_only_what_is_declared_gets_gradients_and_moves(kind):
    mixture = mixed(registry.load_module("mixer", kind).Mixer()).train()
    gate = dict(mixture.gate.named_parameters(prefix="gate")) if mixture.gate is not None else {}
    learnt = {name for name, parameter in gate.items() if parameter.requires_grad}  # a frozen part keeps its bits
    declared = learnt | {name for name in mixture.trainable_parameters() if mixture.mixer.trains_experts}
    before = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in mixture.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        logits = mixture(input_ids=IDS).logits
        (logits.square().mean() + mixer_penalty(mixture, torch.ones_like(IDS, dtype=torch.bool), 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, tensor in mixture.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == declared


@pytest.mark.parametrize("kind", [k for k in KINDS if registry.load_module("mixer", k).Mixer.trained])
def test_checkpointed_blocks_give_the_same_gradients(kind):
    found = []
    for checkpoints in (False, True):
        mixture = mixed(registry.load_module("mixer", kind).Mixer()).train()
        if checkpoints:
            mixture.checkpoint_gradients()
        torch.manual_seed(3)
        logits = mixture(input_ids=IDS).logits
        (logits.square().mean() + mixer_penalty(mixture, torch.ones_like(IDS, dtype=torch.bool), 1)).backward()
        found.append({name: p.grad for name, p in mixture.trainable_parameters().items() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any(gradient.any() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch_or_padding(kind):
    mixture = mixed(registry.load_module("mixer", kind).Mixer())
    row = IDS[:1, :6]
    alone = mixture(input_ids=row).logits
    for pads in ((0, 3), (3, 0)):
        padded = torch.nn.functional.pad(row, pads)
        mask = torch.nn.functional.pad(torch.ones_like(row), pads)
        batch, masks = torch.cat([padded, IDS[1:]]), torch.cat([mask, torch.ones_like(IDS[1:])])
        positions = (masks.cumsum(-1) - 1).clamp(min=0)
        out = mixture(input_ids=batch, attention_mask=masks, position_ids=positions).logits
        torch.testing.assert_close(out[:1, pads[0] : pads[0] + 6], alone, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_mixture_opens_with_equal_logits(kind, tmp_path):
    base = causal_base(tmp_path / "base")
    folders = {}
    for name, adapter in experts(base.model).items():
        folders[name] = tmp_path / name
        adapter.run["base_sha256"] = base.fingerprint
        deltas.save_adapter(folders[name], adapter, causal=True)
    mixer = registry.load_module("mixer", kind).Mixer()
    given = {name: deltas.load_adapter(folder) for name, folder in folders.items()}
    mixture = Mixture(base.model, mixer.prepare_experts(given, seed=4), mixer, domains=list(given))
    if mixture.gate is not None:
        draw_gate(mixture.gate, 5)
    mixture.eval().domain = 2
    expected = mixture(input_ids=IDS).logits
    save_mixture(tmp_path / "mixture", mixture, kind, folders, {"base": "tiny", "base_sha256": base.fingerprint})
    mixture.remove_experts()
    for folder in folders.values():  # the saved mixture needs nothing but its base
        folder.rename(folder.with_suffix(".moved"))
    again = open_mixture(tmp_path / "mixture", base)
    again.domain = 2
    assert torch.equal(again(input_ids=IDS).logits, expected)
    assert (again.names, again.domains) == (mixture.names, ["a", "b", "c"])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_two_caches_write_the_same_as_running_everything_anew(kind):
    mixture = mixed(registry.load_module("mixer", kind).Mixer())
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    start = {
        "input_ids": IDS[:, :6] * mask,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    cached = continued(mixture, start, 12)
    ids, mask, prompt = start["input_ids"], start["attention_mask"], start["attention_mask"].bool()
    for step in range(12):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "prompt": prompt}
        token = mixture(**given).logits[:, -1].argmax(-1)
        assert token.tolist() == [row[step] for row in cached]
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(token[:, None])], 1)
        prompt = torch.nn.functional.pad(prompt, (0, 1))


@torch.no_grad()
def test_a_zero_gate_is_the_uniform_mixture():
    mixture = mixed(registry.load_module("mixer", "xlora").Mixer())
    for parameter in mixture.gate.parameters():
        parameter.zero_()
    uniform = mixed(registry.load_module("mixer", "uniform").Mixer())
    torch.testing.assert_close(mixture(input_ids=IDS).logits, uniform(input_ids=IDS).logits, **CLOSE)


@torch.no_grad()
def test_the_first_pass_is_the_base_bit_for_bit():
    mixture = mixed(registry.load_module("mixer", "xlora").Mixer())
    expected = llama()(IDS, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(mixture.bare_states({"input_ids": IDS})["tokens"], expected)


@torch.no_grad()
def test_weights_are_a_distribution_over_experts():
    mixture = mixed(registry.load_module("mixer", "xlora").Mixer(depth=2, width=16))
    mixture(input_ids=IDS)
    weights = mixture.applied["tokens"]
    assert weights.shape == (2, 9, len(mixture.layers), 3)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 9, len(mixture.layers)))


@torch.no_grad()
def test_the_shuffled_control_hands_each_weight_to_another_expert():
    shuffled = mixed(ShuffledMixer(inner=Fixed(values=[1.0, 0.0, 0.0])))
    torch.testing.assert_close(shuffled(input_ids=IDS).logits, alone("b")(IDS).logits, **CLOSE)


def test_a_mixed_layer_outside_its_mixture_fails_loudly():
    mixture = mixed(Fixed(values=[1.0, 0.0, 0.0]))
    with pytest.raises(RuntimeError, match="no gate is set"):
        mixture.model(IDS)


def test_an_untrained_expert_is_refused():
    model = llama()
    core.attach(model, Method(rank=2), 0)
    fresh = core.export(model, (), {})
    core.detach(model)
    with pytest.raises(InputError, match=r"mixture:new: the expert is untrained"):
        check_trained_experts({**experts(), "new": fresh}, "mixture")


def test_a_single_expert_is_refused():
    with pytest.raises(InputError, match="too few experts"):
        check_trained_experts({"a": experts()["a"]}, "mixture")


def test_an_expert_of_another_base_is_refused(tmp_path):
    from loratory.mixers.store import open_experts

    adapter = experts()["a"]
    adapter.run["base_sha256"] = "0" * 64
    deltas.save_adapter(tmp_path / "a", adapter, causal=True)
    with pytest.raises(InputError, match="trained on another base"):
        open_experts({"a": tmp_path / "a"}, "1" * 64)


@pytest.mark.parametrize("domain_loss", [0.0, 0.5])
def test_the_domain_loss_of_x_lora_is_the_cross_entropy_of_its_weights(domain_loss):
    weights = torch.tensor([[[0.5, 0.25, 0.25]], [[0.5, 0.125, 0.375]]])
    expected = -domain_loss * (torch.tensor([0.25, 0.125]).log().mean())
    mixer = registry.load_module("mixer", "xlora").Mixer(domain_loss=domain_loss)
    torch.testing.assert_close(mixer.routing_penalty(weights, 1), expected)


PENALISED = [*((kind, {}) for kind in KINDS), ("xlora", {"domain_loss": 1.0}), ("meteora", {"gate_loss": 0.0})]
PENALISED += [("llava_mole", {"balance": 0.0})]


@pytest.mark.parametrize(("kind", "options"), PENALISED)
def test_what_is_asked_domain_by_domain_is_a_mean_over_tokens_and_labels_are_what_its_parts_differ_by(kind, options):
    mixer = registry.load_module("mixer", kind).Mixer(**options)
    parts = torch.randn(2, 12, 2, 4, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    whole, *each = (float(mixer.routing_penalty(weights, 0)) for weights in (parts.flatten(0, 1), *parts))
    assert (abs(whole - sum(each) / 2) > 1e-4) == mixer.balances
    assert (whole != float(mixer.routing_penalty(parts.flatten(0, 1), 1))) == mixer.learns_labels
