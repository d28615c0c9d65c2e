"""Several batches a step (`gradient_accumulation_steps`) are one large batch, and so are the parts of a batch
(`micro_batch_tokens`), in every training that has the options."""

import copy
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES
from models import causal_base, encoder_base, whisper_base
from torch import nn

from loratory.adapters import core
from loratory.bases.core import Base
from loratory.config import adapter_entry
from loratory.data.batching import Batches, split_batch
from loratory.domains.contract import Example
from loratory.training import folding, sweep
from loratory.training.job import Job
from loratory.training.pretrain import train_on_corpora
from loratory.training.schedule import Training
from loratory.training.session import AdapterSession

STEPS = 5


def ragged(family: str):
    """A toy base whose examples are of unequal lengths, so that batches have unequal numbers of targets."""
    toy = FAMILIES[family]()
    toy.items = [SimpleNamespace(ids=item.ids[: 3 + i % 4], length=3 + i % 4) for i, item in enumerate(toy.items)]

    def collate(items):
        ids = nn.utils.rnn.pad_sequence([item.ids for item in items], batch_first=True)
        labels = nn.utils.rnn.pad_sequence([item.ids for item in items], batch_first=True, padding_value=-100)
        return {"ids": ids, "mask": labels != -100, "labels": ids.sum(1) % 2 if toy.kind == "encoder" else labels}

    def forward(model, batch):
        if toy.kind == "encoder":
            return model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
        return toy.logits(model, batch)

    def loss(model, batch):
        logits, labels = forward(model, batch), batch["labels"]
        if labels.dim() == 2:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum"), int((labels != -100).sum())

    toy.collate, toy.loss = collate, loss
    return toy


def trained(folder, family="llama", parts=3, method="lora", **training) -> dict:
    toy = ragged(family)
    recipe = {"steps": STEPS, "batch_tokens": 12, "gradient_accumulation_steps": parts, "learning_rates": [0.01]}
    entry = adapter_entry({"method": method, "training": recipe | training})
    return sweep.train_one(toy, {"train": toy.items, "valid": toy.items}, entry, 0, 0.01, Job("cpu", folder, "toy"))


def deltas(trial) -> torch.Tensor:
    return torch.cat([delta.B.flatten() for delta in trial["adapter"].deltas.values()])


@pytest.mark.parametrize("family", ["llama", "bert", "whisper"])
def test_a_step_of_several_batches_is_the_step_of_all_their_examples_at_once(family, tmp_path, monkeypatch):
    apart = trained(tmp_path / "apart", family)

    class Pooled(Batches):
        """The examples of three batches as one."""

        def __call__(self, step):
            return [i for number in range(3 * step, 3 * step + 3) for i in super(Pooled, self).__call__(number)]

    monkeypatch.setattr("loratory.training.session.batching.Batches", Pooled)
    together = trained(tmp_path / "together", family, parts=1)
    torch.testing.assert_close(deltas(apart), deltas(together), rtol=1e-3, atol=1e-5)
    counts = [[point["targets"] for point in trial["curve"]] for trial in (apart, together)]
    assert counts[0] == counts[1]
    pairs = [(one["loss"], other["loss"]) for one, other in zip(apart["curve"], together["curve"])]
    assert all(one == pytest.approx(other, rel=1e-4) for one, other in pairs)


@pytest.fixture
def gradients(monkeypatch):
    """What `fit.update` hands to the optimizer: [{parameter: gradient}] of all steps."""
    found = []

    def note(self, step):
        found.append({name: p.grad.clone() for name, p in core.trainable_parameters(self.model).items()})

    monkeypatch.setattr(AdapterSession, "after_step", note)
    return found


@pytest.mark.parametrize("family", ["llama", "bert", "whisper"])
@pytest.mark.parametrize("method", ["lora", "adalora"])  # without and with a term of its own beside the loss
def test_a_batch_that_is_learnt_from_in_parts_is_the_whole_batch(family, method, tmp_path, gradients):
    options = {"parts": 2, "steps": 1, "batch_tokens": 24}
    whole = trained(tmp_path / "whole", family, method=method, **options)
    apart = trained(tmp_path / "apart", family, method=method, micro_batch_tokens=6, **options)
    assert apart["curve"][0]["loss"] == pytest.approx(whole["curve"][0]["loss"], rel=1e-6)
    assert apart["curve"][0]["targets"] == whole["curve"][0]["targets"]
    assert apart["positions"] < whole["positions"], "shorter parts are padded less"
    assert apart["valid_loss"] == pytest.approx(whole["valid_loss"], rel=1e-5)
    one, other = (torch.cat([gradient.flatten() for gradient in step.values()]) for step in gradients)
    assert one.norm() > 0 and (one - other).norm() < 1e-6 * one.norm()


def test_parts_hold_every_row_of_a_batch_once():
    assert split_batch([4, 2, 3, 9], 6) == [[1, 2], [0], [3]] and split_batch([4, 2], None) == [[0, 1]]
    batch = {"mask": torch.arange(5)[:, None], "passes": 2}
    parts = folding.split_chains(batch, 64, 128)
    assert [part["mask"].flatten().tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert all(part["passes"] == 2 for part in parts)


def test_a_single_batch_a_step_is_what_it_was(tmp_path):
    assert Training().gradient_accumulation_steps == 1
    assert [*Training().batch_numbers(7)] == [7]
    assert [*Training(gradient_accumulation_steps=3).batch_numbers(2)] == [6, 7, 8]


def test_a_training_that_is_killed_in_its_middle_goes_on_bit_for_bit(tmp_path, kill_in_step):
    whole = trained(tmp_path / "whole", save_every=2)
    kill_in_step(4, lambda: trained(tmp_path / "parts", save_every=2))
    resumed = trained(tmp_path / "parts", save_every=2)
    assert torch.equal(deltas(resumed), deltas(whole))
    assert [point["loss"] for point in resumed["curve"]] == [point["loss"] for point in whole["curve"]]


def test_costs_are_those_of_all_batches(tmp_path):
    once, thrice = trained(tmp_path / "once", parts=1, steps=3 * STEPS), trained(tmp_path / "thrice")
    assert once["positions"] == thrice["positions"] and once["flops"] == thrice["flops"]
    recipe = Training(steps=STEPS, batch_tokens=12, gradient_accumulation_steps=3)
    toy = ragged("llama")
    session = AdapterSession(toy, None, {}, toy.items, recipe, 0)
    assert thrice["positions"] == sum(session.batch(number)["ids"].numel() for number in range(3 * STEPS))


BASES = {"causal": causal_base, "encoder": encoder_base, "whisper": whisper_base}


@pytest.mark.parametrize("corpora", [1, 2])
def test_a_base_that_is_pretrained_on_several_batches_a_step_has_learnt_from_all(corpora, tmp_path):
    base = causal_base(tmp_path / "base", ears=False)
    base.model.requires_grad_(True)
    texts = ["yes no", "the user likes it", "no", "to text and back", "like", "the the the"]
    examples = {
        name: [Example(id=t, group=t, prompt="the ", target=t[:length]) for t in texts]
        for name, length in (("a", 99), ("b", 4))
    }
    given = dict([*examples.items()][:corpora])

    def losses(parts, steps, micro=None):
        own = copy.deepcopy(base.model)
        options = {"gradient_accumulation_steps": parts, "micro_batch_tokens": micro}
        recipe = Training(steps=steps, batch_tokens=24, learning_rate=1e-9, **options)
        parameters = dict(base.model.named_parameters())
        job = Job("cpu", tmp_path / f"{corpora}{parts}{micro}", "toy")
        curve = train_on_corpora(base, parameters, given, recipe, 0, job)
        base.model.load_state_dict(own.state_dict())
        return curve

    apart, single = losses(2, 2), losses(1, 4)
    assert apart[0]["targets"] == single[0]["targets"] + single[1]["targets"]
    for one, other in zip(losses(2, 2, micro=8), apart):
        assert one["targets"] == other["targets"] and one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    if corpora == 1:
        both = sum(point["loss"] * point["targets"] for point in single[:2])
        assert apart[0]["loss"] * apart[0]["targets"] == pytest.approx(both, rel=1e-4)


def test_a_folding_bases_announced_residues_are_those_that_are_scored():
    torch.manual_seed(0)
    backbone = torch.randn(2, 9, 4, 3) * 3
    known = torch.rand(2, 9) > 0.3
    backbone[0, 3] += 500  # near no other
    alphas = backbone[:, :, folding.CA]
    scored = folding.lddt_scores(torch.randn_like(alphas), alphas, known).isfinite().sum()
    assert folding.count_scored({"backbone": backbone, "known": known}) == scored < known.numel()


def test_targets_are_counted_as_every_family_sums_them(tmp_path):
    for family, make in BASES.items():
        base = make(tmp_path / family)
        assert type(base).count_targets is Base.count_targets
