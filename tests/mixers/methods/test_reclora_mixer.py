"""RecLoRA: what its two ways of combining compute, what moves, and what its weights depend on."""

import pytest
import torch
from models import causal_base, llama, trained_adapter
from small import CLOSE, IDS, alone, change, mixed
from torch.nn.functional import one_hot

from loratory.adapters import deltas
from loratory.adapters.deltas import Adapter, LowRank
from loratory.adapters.methods.lora import Method
from loratory.domains.contract import Example
from loratory.domains.recommender import DeepInterest, fit_recommender, like_probabilities
from loratory.mixers.core import Mixture
from loratory.mixers.methods.reclora import Mixer
from loratory.mixers.store import open_mixture, save_mixture

MODULE = "model.layers.1.mlp.up_proj"
CONTEXT = torch.tensor(
    [[[11, 0], [12, 500], [13, 100], [14, 450]], [[15, 0], [12, 50], [16, 400], [0, 0]]]
)  # of two users; one has done less
COMBINE = ("paper", "released", "released_sqrt")


def one() -> dict[str, Adapter]:
    return {"a": trained_adapter(llama(), Method(rank=2, alpha=3.0, target_modules=("q_proj", "up_proj")), 1)}


def personal(**options) -> Mixture:
    """A mixture whose recommender knows all items and whose gates tell users apart."""
    mixture = mixed(Mixer(meta_loras=3, **options), one())
    mixture.gate["tokens"]["recommender"].note_items(CONTEXT)
    return mixture


def factors(mixture: Mixture) -> list[LowRank]:
    layer = mixture.layers[MODULE]
    return [layer.current_delta(i, 1.5) for i in range(len(mixture.names))]


@torch.no_grad()
@pytest.mark.parametrize("combine", COMBINE)
def test_each_way_of_combining_is_its_explicit_sum(combine):
    mixture = personal(combine=combine)
    x, added = change(mixture, MODULE, input_ids=IDS, context=CONTEXT)
    at = mixture.sizes["tokens"].modules.index(MODULE)
    weights = mixture.applied["tokens"][:, 0, at]
    assert not torch.allclose(weights[0], weights[1], atol=1e-3)
    for row in range(2):
        a, b = weights[row], factors(mixture)
        if combine == "paper":
            expected = sum(a[k] * 1.5 * b[k].B @ b[k].A for k in range(3))
        else:
            expected = 1.5 * sum(a[i] * a[j] * b[i].B @ b[j].A for i in range(3) for j in range(3))
        torch.testing.assert_close(added[row], x[row] @ expected.T, **CLOSE)
    assert (weights.square() if combine == "released_sqrt" else weights).sum(-1).tolist() == pytest.approx([1, 1])


@torch.no_grad()
@pytest.mark.parametrize("combine", COMBINE)
def test_one_meta_lora_is_that_lora_alone(combine):
    mixture = mixed(Mixer(meta_loras=1, combine=combine), one())
    (only,) = mixture.current_experts().values()
    torch.testing.assert_close(mixture(input_ids=IDS, context=CONTEXT).logits, alone(only)(IDS).logits, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("combine", COMBINE)
def test_one_hot_weights_are_that_meta_lora(combine, monkeypatch):
    monkeypatch.setattr(Mixer, "routing_weights", lambda *_: one_hot(torch.tensor([[[1]]]), 3).float())
    mixture = mixed(Mixer(meta_loras=3, combine=combine), one())
    found = mixture(input_ids=IDS, context=CONTEXT).logits
    torch.testing.assert_close(found, alone(mixture.current_experts()["meta_2"])(IDS).logits, **CLOSE)


@torch.no_grad()
def test_it_starts_as_the_base():
    given = one()
    mixer = Mixer(meta_loras=3)
    mixture = Mixture(llama(), mixer.prepare_experts(given, 0), mixer, domains=["a"]).eval()
    assert torch.equal(mixture(input_ids=IDS, context=CONTEXT).logits, llama()(IDS).logits)


@pytest.mark.parametrize("recommender", ["frozen", "adaptive"])
def test_a_frozen_recommender_gets_no_gradient_and_keeps_its_bits_and_an_adaptive_one_moves(recommender):
    mixture = personal(recommender=recommender).train()
    before = {name: tensor.clone() for name, tensor in mixture.gate.state_dict().items()}
    own = [p for name, p in mixture.gate.named_parameters() if ".recommender." in name]
    moves = recommender == "adaptive"
    moving = mixture.trainable_parameters()
    assert any(".recommender." in name for name in moving) == moves, "and is counted as what it is"
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(moving.values(), lr=0.01)
    mixture(input_ids=IDS, context=CONTEXT).logits.square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in own) == moves
    optimizer.step()
    changed = {name for name, tensor in mixture.gate.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(".recommender." in name for name in changed) == moves
    assert any(".gates." in name for name in changed)


@torch.no_grad()
def test_weights_follow_the_past_and_the_item_and_not_the_prompt_or_the_batch():
    mixture = personal()

    def weights(ids, context):
        mixture(input_ids=ids, context=context)
        return mixture.applied["tokens"].clone()

    first = weights(IDS, CONTEXT)
    assert torch.equal(weights(IDS.flip(0), CONTEXT), first)
    torch.testing.assert_close(weights(IDS, CONTEXT.flip(0)), first.flip(0))
    padded = torch.nn.functional.pad(CONTEXT, (0, 0, 0, 5))
    torch.testing.assert_close(weights(IDS[1:], padded[1:]), first[1:])
    other = CONTEXT.clone()
    other[0, 1, 1] = 50
    assert not torch.allclose(weights(IDS, other)[0], first[0])
    assert not torch.allclose(weights(IDS, torch.cat([CONTEXT[1:], CONTEXT[:1]]))[0], first[0])


@torch.no_grad()
@pytest.mark.parametrize("view", ["user_and_item", "user"])
def test_a_view_of_the_user_alone_weighs_alike_whatever_item_is_asked_about(view):
    mixture = personal(view=view)

    def weights(context):
        mixture(input_ids=IDS, context=context)
        return mixture.applied["tokens"].clone()

    first, other_items, other_stars = weights(CONTEXT), CONTEXT.clone(), CONTEXT.clone()
    other_items[:, 0, 0] = torch.tensor([16, 12])
    other_stars[:, 1, 1] = 300
    assert torch.equal(weights(other_items), first) == (view == "user")
    assert not torch.allclose(weights(other_stars), first)


def test_the_recommender_of_a_search_reads_another_past_than_one_of_all():
    contexts = [((11 + i % 5, 0), *((11 + (i + n) % 5, 500 if n % 2 else 50) for n in range(4))) for i in range(40)]
    choices = (" no", " yes")
    examples = [Example(f"{i}", "", "", choices[i % 2], choices, context=c) for i, c in enumerate(contexts)]
    found = {}
    for searched in (None, 1):
        mixer = Mixer(meta_loras=2, searched=searched)
        mixture = mixed(mixer, one())
        mixture.start_gate(mixer.pretrain_gate(examples, 3))
        own = mixture.gate["tokens"]["recommender"].eval()
        found[searched] = like_probabilities(own, contexts)
        assert found[searched] == like_probabilities(fit_recommender(contexts, [0, 1] * 20, 3, searched), contexts)
    assert found[None] != found[1]


@torch.no_grad()
def test_a_record_of_which_nothing_is_known_gets_the_same_weights_whatever_its_batch():
    mixture = personal()
    mixture(input_ids=IDS)
    unknown = mixture.applied["tokens"]
    mixture(input_ids=IDS, context=torch.stack([CONTEXT[0], torch.zeros_like(CONTEXT[0])]))
    torch.testing.assert_close(mixture.applied["tokens"][1:], unknown)


@torch.no_grad()
def test_a_saved_mixture_opens_with_equal_logits_for_users_too(tmp_path):
    base = causal_base(tmp_path / "base")
    adapter = trained_adapter(base.model, Method(rank=2), 1)
    adapter.run["base_sha256"] = base.fingerprint
    deltas.save_adapter(tmp_path / "a", adapter, causal=True)
    mixer = Mixer(meta_loras=2, combine="released")
    mixture = Mixture(base.model, mixer.prepare_experts({"a": adapter}, 4), mixer, domains=["a"]).eval()
    contexts = [((11, 0), (12, 500)), ((13, 0), (12, 50))] * 4
    examples = [
        Example(f"{i}", "", "", " yes" if i % 2 else " no", (" no", " yes"), context=c) for i, c in enumerate(contexts)
    ]
    mixture.start_gate(mixer.pretrain_gate(examples, 3))
    for layer in mixture.layers.values():
        layer.B.data.normal_()
    expected = mixture(input_ids=IDS, context=CONTEXT).logits
    run = {"base": "tiny", "base_sha256": base.fingerprint}
    save_mixture(tmp_path / "mixture", mixture, "reclora", {"a": tmp_path / "a"}, run)
    mixture.remove_experts()
    assert torch.equal(open_mixture(tmp_path / "mixture", base)(input_ids=IDS, context=CONTEXT).logits, expected)


def test_the_gate_starts_with_the_recommender_that_learnt_from_the_examples():
    contexts = [((11 + i % 5, 0), (12, 500 if i % 2 else 50)) for i in range(40)]
    labels = [i % 2 for i in range(40)]
    choices = (" no", " yes")
    examples = [
        Example(f"{i}", "", "", choices[y], choices, context=c) for i, (c, y) in enumerate(zip(contexts, labels))
    ]
    unknown = Example("none", "", "a text", "a target")
    mixture = mixed(Mixer(meta_loras=2), one())
    mixture.start_gate(Mixer().pretrain_gate([*examples, unknown], 3))
    learnt = fit_recommender(contexts, labels, 3)
    own = mixture.gate["tokens"]["recommender"]
    assert isinstance(own, DeepInterest)
    assert like_probabilities(own.eval(), contexts) == like_probabilities(learnt, contexts)
    assert Mixer().pretrain_gate([unknown], 3) == {}
