"""LoRAPrune: its estimate, its schedule, and that what is kept is what was masked, on tiny models."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import spearmanr

from loratory.adapters import core
from loratory.config import stage_entry
from loratory.errors import InputError
from loratory.lifecycle import cutting, pruning
from loratory.lifecycle.sequence import JointTraining


def train_pruning(room, share, interval=1):
    """The training, and while the adapter lies on the base: its tensors, and what `look(base)` gave."""
    parts = cutting.find_parts(room.base.model, "toy")
    training = pruning.PruningTraining("it", room, ["some"], parts, share, interval)
    for arm in training.iterate_arms():
        training.learnt = {n: p.detach().clone() for n, p in core.trainable_parameters(arm.model).items()}
        with cutting.mask_units(arm.model, parts, training.masks):
            training.masked = room.base.output()
        training.sliced = cutting.slice_base(room.base, parts, training.kept)
        training.merged = cutting.merge_base(training.sliced)
    return training


def entry_of(**options):
    named = {"base": "mini", "domains": ("speech",), "adapter": "lora"}
    return stage_entry({"procedure": "lora_prune", **named, **options})


def test_the_estimate_is_what_a_unit_step_takes_from_the_product(open_room):
    room = open_room()
    layers = core.attach(room.base.model, room.method, 0)
    for layer in layers.values():
        layer.adapter["B"].data.normal_(generator=torch.Generator().manual_seed(1))
    total, targets = room.base.loss(room.base.model, room.base.collate(room.base.items))
    (total / targets).backward()
    for layer in layers.values():
        a, b = layer.adapter["A"], layer.adapter["B"]
        taken = b @ a - (b - b.grad) @ (a - a.grad)
        expected = (taken * (layer.weight + room.method.scale * b @ a)).square()
        torch.testing.assert_close(pruning.weight_importance(layer), expected, rtol=1e-3, atol=1e-8)


def test_scores_rank_units_much_as_the_true_gradients_do(open_room):
    room = open_room(rank=16)
    parts = cutting.find_parts(room.base.model, "toy")
    layers = core.attach(room.base.model, room.method, 0)
    for layer in layers.values():
        layer.base.weight.requires_grad_(True)
    total, targets = room.base.loss(room.base.model, room.base.collate(room.base.items))
    (total / targets).backward()
    estimated = {name: pruning.weight_importance(layer) for name, layer in layers.items()}
    true = {name: (layer.base.weight.grad * layer.base.weight).square() for name, layer in layers.items()}
    for part in (part for part in parts if part.units > 10):
        found = spearmanr(part.unit_sums(estimated).detach(), part.unit_sums(true).detach()).statistic
        assert found > 0.5, (part.name, found)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 57, 200])
def test_the_schedule_never_falls_and_ends_at_the_share(steps):
    shares = [pruning.cut_progress(step, steps) for step in range(steps)]
    assert shares == sorted(shares) and shares[-1] == 1
    first, last = pruning.cut_window(steps)
    assert shares[last] == 1 and shares[first] == (steps < 2 or first == last)
    if steps >= 10:
        assert (first, steps - 1 - last) == (round(0.1 * steps), round(0.1 * steps)), "a tenth before, a tenth behind"
        assert shares[(first + last) // 2] == pytest.approx(1 - 0.5**3, abs=0.1)


@pytest.mark.parametrize("family", ["grouped", "whisper"])
def test_units_go_one_after_the_other_until_the_share_is_cut(open_room, monkeypatch, family):
    counts = []
    step = pruning.PruningSession.after_step

    def note(self, number):
        step(self, number)
        counts.append({name: int(mask.sum()) for name, mask in self.masks.items()})

    monkeypatch.setattr(pruning.PruningSession, "after_step", note)
    training = train_pruning(open_room(family, steps=10), 0.5)
    for part in training.parts:
        left = [each[part.name] for each in counts]
        assert left == sorted(left, reverse=True) and left[0] == left[1] == part.units
        assert left[-1] == left[-2] == part.kept_number(0.5) == len(training.kept[part.name])
        assert len({*left}) > 3 or part.units <= 4


def test_what_is_cut_is_what_scores_least(open_room):
    training = train_pruning(open_room(), 0.5)
    for part in training.parts:
        scores, kept = training.scores[part.name], training.masks[part.name].bool()
        assert scores[kept].min() >= scores[~kept].max()
        assert (scores > 0).any()


@pytest.mark.parametrize("family", ["grouped", "whisper"])
def test_the_model_that_is_kept_says_what_the_masked_one_said(open_room, family):
    training = train_pruning(open_room(family), 0.5)
    outputs = []
    for base in (training.sliced, training.merged):
        outputs.append(base.output())
        torch.testing.assert_close(outputs[-1], training.masked, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, core.AdaptedLinear) for module in training.merged.model.modules())
    assert float((training.masked - training.base.output()).abs().max()) > 1e-3


def test_a_share_of_nothing_is_the_plain_training(open_room):
    plain = {}
    for arm in JointTraining("it", open_room(), ["some"]).iterate_arms():
        plain = {n: p.detach().clone() for n, p in core.trainable_parameters(arm.model).items()}
    none, half = train_pruning(open_room(), 0.0), train_pruning(open_room(), 0.5)
    assert all(torch.equal(none.learnt[name], plain[name]) for name in plain)
    assert any(not torch.equal(half.learnt[name], plain[name]) for name in plain)


def test_the_base_is_as_it_was_after_all(open_room):
    room = open_room()
    before = {name: p.clone() for name, p in room.base.model.named_parameters()}
    output = room.base.output()
    train_pruning(room, 0.5)
    assert all(torch.equal(p, before[name]) for name, p in room.base.model.named_parameters())
    assert torch.equal(room.base.output(), output) and not any(p.requires_grad for p in room.base.model.parameters())


def test_a_killed_training_goes_on_to_the_same_cut(open_room, monkeypatch):
    whole = train_pruning(open_room(save_every=1, folder="whole"), 0.5)
    step = pruning.PruningSession.after_step
    with monkeypatch.context() as patched:

        def die(self, number):
            if number == 4:
                raise KeyboardInterrupt
            step(self, number)

        patched.setattr(pruning.PruningSession, "after_step", die)
        with pytest.raises(KeyboardInterrupt):
            train_pruning(open_room(save_every=1), 0.5)
    resumed = train_pruning(open_room(save_every=1), 0.5)
    assert all(torch.equal(resumed.learnt[name], whole.learnt[name]) for name in whole.learnt)
    for name, score in whole.scores.items():
        assert torch.equal(resumed.scores[name], score) and torch.equal(resumed.masks[name], whole.masks[name])


def test_all_arms_are_there_and_the_smaller_ones_are_smaller(open_room):
    entry, room = entry_of(shares=(0.0, 0.5), interval=1), open_room()
    arms = {}
    for arm in entry.iterate_arms(entry, room):
        arms[arm.name] = SimpleNamespace(**arm.measures, whole=arm.whole, stored=arm.stored, timed=arm.timed)
        assert cutting.model_size(arm.base.model)["parameters"] >= arm.measures["parameters"]
    assert [*arms] == [
        *("base", "lora"),
        *("lora_prune_0", "magnitude_0", "random_0"),
        *("lora_prune_50", "magnitude_50", "random_50"),
    ]
    sizes = {name: arm.parameters for name, arm in arms.items()}
    assert sizes["lora"] == sizes["base"] == sizes["lora_prune_0"] == sizes["random_0"]
    assert sizes["lora_prune_50"] == sizes["magnitude_50"] == sizes["random_50"] < 0.8 * sizes["base"]
    assert all(arm.timed for arm in arms.values())
    assert [name for name, arm in arms.items() if arm.stored] == ["lora"]
    assert [name for name, arm in arms.items() if arm.whole] == [name for name in arms if "_" in name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shares": (1.0,)}, "less than 1"),
        ({"shares": (-0.1,)}, "greater than or equal to 0"),
        ({"shares": (0.2, 0.201)}, "distinct whole percents"),
        ({"interval": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_their_names(options, words):
    with pytest.raises(ValueError, match=f"(?s){next(iter(options))}.*{words}"):
        entry_of(**options)


def test_nothing_is_trained_where_nothing_can_be_cut_or_scored(open_room):
    entry = entry_of()
    for room, words in (
        (open_room("gpt2"), r"toy: heads and channels cannot be cut out of it \(GPT2LMHeadModel"),
        (open_room(target_modules=("q_proj",)), r"lifecycle\.smaller\.adapter: the adapter has no layer in .*mlp"),
    ):
        with pytest.raises(InputError, match=words):
            next(entry.iterate_arms(entry, room))
