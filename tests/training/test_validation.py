"""Looks at `valid` while something is trained: the best step is kept, and the rule of early stopping."""

import json

import pytest
import torch
from families import FAMILIES
from pydantic import ValidationError
from torch import nn

from loratory.config import adapter_entry
from loratory.reporting.methods import budget_facts
from loratory.training import sweep
from loratory.training.fit import Loss, MicroBatch, TrainingHooks, train_model
from loratory.training.job import Job
from loratory.training.schedule import Sweep, Trial

LOSSES = (5.0, 3.0, 4.0, 3.5, 2.9, 9.0)


class Noise(TrainingHooks):
    """Keeps a number that changes with every step beside the parameters."""

    def __init__(self):
        self.count = torch.zeros(1)

    def after_step(self, step):
        self.count += 1

    def state_tensors(self):
        return {"count": self.count}


class Killed(BaseException):
    pass


class Run:
    """A training of one weight matrix with dropout, whose looks at `valid` find the given losses."""

    def __init__(self, folder, losses=LOSSES, kill_at_look=None, kill_at_step=None, **options):
        torch.manual_seed(0)
        self.net, self.hooks = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 1)).train(), Noise()
        self.seen, self.looks = [], 0

        def micro_batches(step):
            if step == kill_at_step:
                raise Killed
            return [MicroBatch("t", {"x": torch.randn(5, 3, generator=torch.Generator().manual_seed(step))})]

        def validate():
            look = round(float(self.hooks.count)) // recipe.validate_every - 1
            if look == kill_at_look:
                raise Killed
            self.seen.append(self.state())
            return losses[look]

        recipe = Trial(**{"steps": 12, "validate_every": 2, "learning_rate": 0.1, "save_every": 3} | options)
        try:
            loss = lambda m: Loss((self.net(m.batch["x"]) - 1).square().sum(), 5)  # noqa: E731
            parameters = dict(self.net.named_parameters())
            self.curve = train_model(
                parameters, micro_batches, loss, recipe, 0, folder, "toy", validate, hooks=self.hooks
            )
        except Killed:
            self.curve = None

    def state(self):
        return torch.cat([*(p.detach().flatten() for p in self.net.parameters()), self.hooks.count])

    def points(self):
        return [(p["step"], p["loss"], p.get("valid_loss")) for p in self.curve]


def test_the_step_of_the_lowest_loss_is_what_remains(tmp_path, capsys):
    run = Run(tmp_path)
    assert [p.get("valid_loss") for p in run.curve] == [each for loss in LOSSES for each in (None, loss)]
    assert run.hooks.count == 10 and torch.equal(run.state(), run.seen[4]) and not torch.equal(*run.seen[3:5])
    told = capsys.readouterr().out
    assert "loss on valid 2.9000 after step 10, the lowest so far" in told
    assert "loss on valid 3.5000 after step 8\n" in told


def test_without_looks_on_the_way_the_last_step_remains_and_is_validated(tmp_path):
    run = Run(tmp_path / "a", validate_every=12, losses=[1.0])
    plain = Run(tmp_path / "b", validate_every=12, losses=[float("nan")])
    assert run.hooks.count == plain.hooks.count == 12 and torch.equal(run.state(), plain.state())


@pytest.mark.parametrize(("patience", "looks", "best"), [(1, 3, 2), (2, 4, 2), (3, 6, 5)])
def test_a_training_ends_after_as_many_looks_without_a_lower_loss(patience, looks, best, tmp_path):
    run = Run(tmp_path, patience=patience)
    assert len(run.curve) == 2 * looks and torch.equal(run.state(), run.seen[best - 1])


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize(
    "death",
    [{"kill_at_look": 0}, {"kill_at_look": 2}, {"kill_at_look": 3}, {"kill_at_step": 6}, {"kill_at_step": 7}],
    ids=str,
)
def test_a_training_that_is_killed_while_it_looks_or_later_goes_on_to_the_same(death, patience, tmp_path):
    whole = Run(tmp_path / "whole", patience=patience)
    assert Run(tmp_path / "parts", patience=patience, **death).curve is None
    again = Run(tmp_path / "parts", patience=patience)
    assert again.points() == whole.points() and torch.equal(again.state(), whole.state())


def test_patience_without_looks_is_refused_with_the_config():
    with pytest.raises(ValidationError, match="expected `validate_every` above 0"):
        Sweep(patience=2)
    trial = Sweep(validate_every=5, patience=2, steps=9).at_rate(0.3)
    assert (trial.learning_rate, trial.validate_every, trial.patience, trial.steps) == (0.3, 5, 2, 9)


def trained(folder, **options):
    toy = FAMILIES["llama"]()
    recipe = {"steps": 8, "batch_tokens": 24, "learning_rates": [0.3], "decay": "constant", **options}
    entry = adapter_entry({"method": "adalora", "training": recipe})
    sets = {"train": toy.items[:3], "valid": toy.items[3:]}
    job = Job("cpu", folder, "toy")
    return sweep.train_one(toy, sets, entry, 0, 0.3, job) | {"job": job, "rate": 0.3}, toy, entry


def test_an_adapter_is_that_of_its_best_step_and_its_run_says_which(tmp_path):
    """Three examples are soon learnt by heart, which makes the others less likely."""
    trial, toy, entry = trained(tmp_path / "best", validate_every=1)
    losses = [point["valid_loss"] for point in trial["curve"]]
    best = trial["best_step"]
    assert losses[best] == min(losses) == trial["valid_loss"] < losses[-1] and trial["validation_time"] > 0
    plain, *_ = trained(tmp_path / "plain")
    assert [p["loss"] for p in plain["curve"]] == [p["loss"] for p in trial["curve"]], "looks change nothing"
    assert plain["valid_loss"] == pytest.approx(losses[-1])
    ended, *_ = trained(tmp_path / "ended", validate_every=1, patience=1)
    assert len(ended["curve"]) < 8 and ended["steps"] == len(ended["curve"]) and ended["best_step"] == best
    assert all(torch.equal(ended["adapter"].deltas[n].B, d.B) for n, d in trial["adapter"].deltas.items())
    toy.manifest, toy.fingerprint, toy.device, toy.family = {"name": "toy"}, "", torch.device("cpu"), "causal"
    run = sweep.describe_run(toy, "lncrna", entry, 0, trial, [])
    assert run["train_info"]["best_step"] == run["train_info"]["metrics"][0]["step"] == best
    assert json.loads(json.dumps(run))["train_info"]["validation_time"] >= 0


def test_early_stopping_is_a_budget_that_all_methods_share():
    def run(targets, **config):
        return {"run_info": {"train_config": config}, "train_info": {"targets": targets}}

    rule = {"steps": 9, "validate_every": 2, "patience": 3}
    assert budget_facts(run(7, **rule)) == budget_facts(run(8, **rule))
    assert budget_facts(run(7, **rule)) != budget_facts(run(7, **rule | {"patience": 2}))
    assert budget_facts(run(7, steps=9)) != budget_facts(run(8, steps=9))
    assert budget_facts(run(7, steps=9)) != budget_facts(run(7, steps=9, validate_every=2))
