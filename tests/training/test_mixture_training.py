"""Trainings of mixtures from files: with states from disk, with activations computed anew, from one split or two, over
a grid of learning rates and several seeds."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from models import causal_base, opinionated, trained_adapter
from safetensors.torch import load_file
from studies import as_records, changed, shipped
from torch.nn.functional import cross_entropy
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.config import mixture_entry as entry
from loratory.config import read_config
from loratory.data.files import read_json
from loratory.domains.contract import Example
from loratory.domains.dataset import record_schema, write_records
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.methods.llava_mole import Mixer as LlavaMole
from loratory.mixers.methods.llava_mole import mlp_block
from loratory.mixers.methods.xlora import Mixer as XLora
from loratory.mixers.store import GATE, open_mixture
from loratory.training import fit, job
from loratory.training import mixture as training
from loratory.training.features import write_features
from loratory.training.mixture import read_training_set, train_mixture, validation_loss
from loratory.training.schedule import Training

DOMAINS = ("protein", "lncrna")
TASKS = {domain: registry.load_module("domain", domain, "sources").Task() for domain in DOMAINS}
OWN = {"protein": {"tax_id": "", "name": ""}, "lncrna": {"label": 1, "gene": ""}}
STEPS = 4


def records(folder, domain: str, seed: int) -> None:
    draw, build = np.random.default_rng(seed), registry.load_module("domain", domain, "build")
    folder.mkdir()
    for split in ("train", "gate", "valid"):
        letters = ["".join(draw.choice(list("ACGT"), int(draw.integers(6, 20)))) for _ in range(8)]
        rows = [
            {"id": f"{split}{i}", "group": f"g{i}", "sequence": s, "length": len(s)} | OWN[domain]
            for i, s in enumerate(letters)
        ]
        write_records(folder / f"{split}.parquet", build, as_records(rows, record_schema(build)))


@pytest.fixture
def study(tmp_path):
    """A base, an adapter and a dataset of each domain, and the features of all that a gate may learn from."""
    base, data, adapters, features = causal_base(tmp_path / "base", ears=False), {}, {}, {}
    for place, domain in enumerate(DOMAINS):
        adapters[domain], data[domain] = str(tmp_path / f"{domain}.lora"), tmp_path / domain
        for seed in (0, 1):
            adapter = trained_adapter(base.model, Method(rank=2 + place), 2 * seed + place)
            adapter.run["base_sha256"] = base.fingerprint
            deltas.save_adapter(f"{adapters[domain]}/seed{seed}", adapter, causal=True)
        records(data[domain], domain, place)
        features[domain] = tmp_path / "features" / domain
        for split in ("train", "gate"):
            given = (domain, data[domain], TASKS[domain], split, base.folder, "cpu", 64, tmp_path / "shards")
            write_features(*given, features[domain] / split)

    def train(out, known=None, mixer="xlora", seeds=(0,), rates=(0.005,), save_every=0, max_valid=4, **options):
        """The trained gate of the first seed."""
        training = {"steps": STEPS, "batch_tokens": 96, "learning_rates": rates, "save_every": save_every}
        experts = dict.fromkeys(DOMAINS, "lora")
        given = entry({"mixer": mixer, "base": "tiny", "experts": experts, "training": training} | options)
        checkpoints = tmp_path / "checkpoints"
        places = (base.folder, adapters, data, TASKS, seeds, "cpu", checkpoints, max_valid, tmp_path / out)
        train_mixture("toy", given, *places, known)
        return load_file(tmp_path / out / f"seed{seeds[0]}" / GATE)

    return SimpleNamespace(base=base, data=data, features=features, train=train, folder=tmp_path)


@pytest.fixture
def calls(monkeypatch):
    """How often the base's body, and how often its blocks' attention, were called."""
    found = {LlamaModel: 0, LlamaAttention: 0}

    def counted(kind, forward):
        def called(self, *args, **kwargs):
            found[kind] += 1
            return forward(self, *args, **kwargs)

        return called

    for kind in found:
        monkeypatch.setattr(kind, "forward", counted(kind, kind.forward))
    return found


MIXERS = {
    "token": {},
    "deep": {"depth": 2, "width": 8, "dropout": 0.3},
    "sequence": {"per": "sequence"},
    "fresh": {"mixer": "slide_lora", "gating": "learned"},
}


@pytest.mark.parametrize("options", MIXERS.values(), ids=MIXERS)
def test_with_features_the_bare_pass_never_runs_and_the_gate_is_the_same(study, calls, options):
    expected = study.train("anew", **options)
    assert calls[LlamaModel] == 2 * STEPS * len(DOMAINS)
    calls[LlamaModel] = 0
    found = study.train("known", study.features, features=True, **options)
    assert calls[LlamaModel] == STEPS * len(DOMAINS)
    begun = study.train("begun", training={"steps": 1, "learning_rates": [1e-9]}, **options)
    assert found.keys() == expected.keys()
    for name, gate in found.items():  # batches are padded otherwise than when the states were made: no bit-equality
        torch.testing.assert_close(gate, expected[name], rtol=0, atol=1e-6)
        assert (gate - begun[name]).abs().max() > 1e-3


@pytest.mark.parametrize("known", [False, True], ids=["anew", "known"])
def test_gradient_checkpointing_repeats_every_block_and_leaves_the_gate_as_it_was(study, calls, known):
    given = {"known": study.features, "features": True} if known else {}
    expected = study.train("plain", **given)
    plain = calls[LlamaAttention]
    assert plain == (1 if known else 2) * STEPS * len(DOMAINS) * 2
    calls[LlamaAttention] = 0
    found = study.train("again", **given, gradient_checkpointing=True)
    assert calls[LlamaAttention] == plain + STEPS * len(DOMAINS) * 2
    for name, gate in found.items():
        torch.testing.assert_close(gate, expected[name], rtol=0, atol=1e-6)


def test_what_starts_experts_of_its_own_learns_from_both_splits_and_knows_the_states_of_both(study):
    given = (study.base, "protein", study.data["protein"], TASKS["protein"])
    both = read_training_set(*given, ("train", "gate"), study.features["protein"])
    parts = [read_training_set(*given, (split,), study.features["protein"]) for split in ("train", "gate")]
    assert [item.ids for item in both.examples] == [item.ids for part in parts for item in part.examples]
    assert [len(row.read_states()) for row in both.states] == [item.length for item in both.examples]
    for row, expected in zip(both.states, [row for part in parts for row in part.states]):
        assert torch.equal(row.read_states(), expected.read_states())


def test_a_batch_without_features_has_no_states(study):
    found = read_training_set(study.base, "protein", study.data["protein"], TASKS["protein"], ("gate",))
    assert "hidden" not in found.collate_batch(study.base, [0, 1], found.examples[:2])


@pytest.mark.parametrize("options", [{"mixer": "uniform"}, {"mixer": "slide_lora", "gating": "task_id"}])
def test_features_that_nothing_would_read_are_refused(options):
    config = changed(shipped("config"), {"mixtures.xlora": shipped("config")["mixtures"]["xlora"] | options})
    plain = changed(config, {"mixtures.xlora": {k: config["mixtures"]["xlora"][k] for k in ("base", "experts")}})
    for key, value in options.items():
        plain["mixtures"]["xlora"][key] = value
    read_config(plain, "study.yaml")
    plain["mixtures"]["xlora"]["features"] = True
    with pytest.raises(InputError, match=rf"mixtures\.xlora\.features: .* \({options['mixer']}\)"):
        read_config(plain, "study.yaml")


# --- a grid of learning rates, and several seeds ---------------------------------------------------------------------


def told(study, out: str, seed: int = 0) -> dict:
    return read_json(study.folder / out / f"seed{seed}" / "mixture.json")


def curves(study, out: str) -> list[tuple]:
    rows = pq.read_table(study.folder / out / "runs.parquet").to_pylist()
    return [tuple(row[key] for key in ("seed", "learning_rate", "step", "loss", "valid_loss")) for row in rows]


def weights(study, out: str, seed: int) -> dict[str, bytes]:
    folder = study.folder / out / f"seed{seed}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture
def asked(monkeypatch):
    """Every (domain, split, limit) that a training reads."""
    found = []

    def note(read):
        def noted(base, domain, data, task, split, limit=None):
            found.append((domain, split, limit))
            return read(base, domain, data, task, split, limit)

        return noted

    for name in ("encode_split", "training_split"):
        monkeypatch.setattr(training, name, note(getattr(training, name)))
    return found


@pytest.mark.parametrize("rates", [(1e-9, 0.3), (0.3, 1e-9)])
@pytest.mark.parametrize("features", [False, True])
def test_of_two_rates_the_one_that_learns_is_kept_and_the_other_seeds_learn_at_it(study, rates, features):
    known = study.features if features else None
    study.train("mixture", known, seeds=(0, 1), rates=rates, features=features)
    first, second = told(study, "mixture"), told(study, "mixture", 1)
    losses = {trial["rate"]: trial["valid_loss"] for trial in first["grid"]}
    assert losses.keys() == {*rates} and losses[0.3] < losses[1e-9]
    assert first["learning_rate"] == second["learning_rate"] == 0.3
    assert first["learning_rates"] == second["learning_rates"] == [*rates]
    assert [trial["rate"] for trial in second["grid"]] == [0.3]
    runs = {(seed, rate) for seed, rate, *_ in curves(study, "mixture")}
    assert runs == {(0, 1e-9), (0, 0.3), (1, 0.3)}
    ends = {(seed, rate): loss for seed, rate, step, _, loss in curves(study, "mixture") if step == STEPS - 1}
    assert ends[0, 1e-9] == losses[1e-9] and ends[1, 0.3] == second["grid"][0]["valid_loss"]


def test_what_is_stored_is_what_the_better_rate_made(study):
    alone = study.train("alone", rates=(0.3,))
    kept = study.train("grid", rates=(0.3, 1e-9))
    assert alone.keys() == kept.keys() and all(torch.equal(alone[name], kept[name]) for name in alone)


def test_the_loss_on_valid_is_that_of_the_stored_mixture_and_each_domain_weighs_alike(study):
    study.train("mixture", rates=(0.3, 1e-9), max_valid=3)
    opened, losses = open_mixture(study.folder / "mixture/seed0", study.base), []
    for place, domain in enumerate(DOMAINS):
        items = training.encode_split(study.base, domain, study.data[domain], TASKS[domain], "valid")
        assert len(items) > 3
        opened.domain, nats = place, []
        for item in training.encode_split(study.base, domain, study.data[domain], TASKS[domain], "valid", 3):
            with torch.no_grad():
                logits = opened(input_ids=torch.tensor([item.ids])).logits[0, :-1]
            labels = torch.tensor(item.labels[1:])
            nats += cross_entropy(logits, labels, reduction="none")[labels != -100].tolist()
        losses.append(sum(nats) / len(nats))
    expected = min(trial["valid_loss"] for trial in told(study, "mixture")["grid"])
    assert abs(losses[0] - losses[1]) > 0.01  # a mean over targets would be another
    assert expected == pytest.approx(sum(losses) / 2, abs=1e-5)


def test_what_a_mixer_adds_to_learn_by_is_in_neither_curve(study):
    study.train("plain", rates=(1e-9, 1e-8))
    bare, labelled = curves(study, "plain"), []
    study.train("labels", rates=(1e-9, 1e-8), domain_loss=9.0)
    labelled = curves(study, "labels")
    assert [row[:3] for row in labelled] == [row[:3] for row in bare]
    for ours, theirs in zip(labelled, bare):
        assert ours[3:] == pytest.approx(theirs[3:], abs=1e-4, nan_ok=True) if theirs[4] else ours[4] is None


def test_a_penalty_is_learnt_from(study):
    plain, labels = study.train("plain"), study.train("labels", domain_loss=9.0)
    assert any(not torch.equal(plain[name], labels[name]) for name in plain)


def test_validation_asks_no_penalty(study, monkeypatch):
    study.train("mixture", domain_loss=1.0)
    opened = open_mixture(study.folder / "mixture/seed0", study.base)
    monkeypatch.setattr(training, "mixer_penalty", None)
    valid = {d: training.encode_split(study.base, d, study.data[d], TASKS[d], "valid") for d in DOMAINS}
    assert 0 < validation_loss(study.base, opened, valid, 96) < 20


def test_valid_is_read_where_rates_are_chosen_and_no_further_than_its_limit(study, asked):
    study.train("one")
    assert {split for _, split, _ in asked} == {"gate"}
    assert told(study, "one")["grid"] == [] and told(study, "one")["learning_rate"] == 0.005
    assert {loss for *_, loss in curves(study, "one")} == {None}
    asked.clear()
    study.train("two", rates=(0.1, 0.2), max_valid=3)
    assert asked == [(d, "gate", None) for d in DOMAINS] + [(d, "valid", 3) for d in DOMAINS]


def test_a_mixture_without_anything_to_train_reads_no_data(study, asked):
    study.train("even", mixer="uniform", seeds=(0, 1), rates=(0.1, 0.2))
    assert not asked and curves(study, "even") == []
    for seed in (0, 1):
        run = told(study, "even", seed)
        assert run["learning_rate"] is None and run["grid"] == run["learning_rates"] == []
        assert run["trainable_parameters"] == 0


@pytest.mark.parametrize("options", [{}, {"mixer": "slide_lora", "gating": "learned"}, {"mixer": "ties"}])
def test_two_seeds_in_one_job_are_two_jobs_of_one_seed(study, options):
    study.train("both", seeds=(0, 1), **options)
    for seed in (0, 1):
        study.train(f"single{seed}", seeds=(seed,), **options)
        assert weights(study, "both", seed) == weights(study, f"single{seed}", seed)
    assert curves(study, "both") == curves(study, "single0") + curves(study, "single1")
    assert weights(study, "both", 0) != weights(study, "both", 1)


def test_a_gate_starts_as_pytorchs_linear_layers_do_whatever_was_drawn_before(study):
    found = []
    for noise in (3, 4):
        torch.manual_seed(noise)
        found.append(study.train(f"start{noise}", rates=(1e-12,)))
    again, weight = found[1], found[0]["tokens.0.weight"]
    assert all(torch.equal(found[0][name], again[name]) for name in again)
    bound = weight.shape[1] ** -0.5
    for drawn in (weight, found[0]["tokens.0.bias"]):
        assert 0.9 * bound < drawn.abs().max() <= bound * 1.0001
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_a_mixture_is_that_of_the_step_whose_loss_on_valid_was_lowest(study):
    study.train("looks", training={"steps": STEPS, "learning_rates": [3.0], "validate_every": 1, "decay": "constant"})
    losses = [loss for *_, loss in curves(study, "looks")]
    run, valid = told(study, "looks"), {}
    for domain in DOMAINS:
        valid[domain] = training.encode_split(study.base, domain, study.data[domain], TASKS[domain], "valid", 4)
    assert len(losses) == run["steps"] == STEPS and run["best_step"] == losses.index(min(losses))
    opened = open_mixture(study.folder / "looks/seed0", study.base)
    assert validation_loss(study.base, opened, valid, 512) == pytest.approx(min(losses), abs=1e-4)
    opened.remove_experts()


@pytest.mark.parametrize("updates", [STEPS + 2, 2 * STEPS + 2], ids=["second rate", "second seed"])
def test_a_job_killed_on_its_way_goes_on_to_the_same_bytes(study, updates, monkeypatch):
    given = {"seeds": (0, 1), "rates": (1e-9, 0.3), "save_every": 1}
    study.train("whole", **given)
    update, calls = training.train_model.__globals__["update"], []

    def killed(*args):
        if len(calls) == updates:
            raise KeyboardInterrupt
        calls.append(1)
        return update(*args)

    with monkeypatch.context() as patched:
        patched.setitem(training.train_model.__globals__, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            study.train("parts", **given)
    assert not (study.folder / "parts/runs.parquet").exists()
    calls.clear()
    monkeypatch.setitem(training.train_model.__globals__, "update", lambda *args: (calls.append(1), update(*args))[1])
    study.train("parts", **given)
    assert len(calls) == 3 * STEPS - updates  # no step is made twice
    assert curves(study, "parts") == curves(study, "whole")
    assert all(weights(study, "parts", seed) == weights(study, "whole", seed) for seed in (0, 1))
    assert not list((study.folder / "checkpoints").iterdir())


def test_the_checkpoints_of_another_task_or_of_other_code_or_packages_are_others(study, monkeypatch):
    fit, known = training.train_model, []
    monkeypatch.setattr(
        training,
        "train_model",
        lambda *given, made_with, **options: (known.append(made_with), fit(*given, made_with=made_with, **options))[1],
    )
    study.train("codons")
    study.train("again")
    with monkeypatch.context() as patched:
        patched.setitem(TASKS, "lncrna", TASKS["lncrna"].model_copy(update={"layout": "letters"}))
        study.train("letters")
    with monkeypatch.context() as patched:
        patched.setattr(job, "package_versions", lambda: {"torch": "0.0"})
        study.train("torch")
    monkeypatch.setattr(training, "mixture_code", lambda domains: "edited")
    study.train("edited")
    assert known[0] == known[1] and all(known[0] != other for other in known[2:])


def test_a_rate_that_diverges_is_left_out_by_name(study, monkeypatch, capsys):
    fit = training.train_model

    def diverging(parameters, micro_batches, loss, steps, seed, folder, title, validate, **options):
        if steps.learning_rate > 1:
            raise InputError(title, "the loss is nan at step 0", reason="diverged")
        return fit(parameters, micro_batches, loss, steps, seed, folder, title, validate, **options)

    monkeypatch.setattr(training, "train_model", diverging)
    kept, alone = study.train("mixture", rates=(9.0, 0.3)), study.train("alone", rates=(0.3,))
    assert "left out of the grid: toy seed 0 lr 9.0: the loss is nan at step 0" in capsys.readouterr().out
    assert [trial["rate"] for trial in told(study, "mixture")["grid"]] == [0.3]
    assert all(torch.equal(kept[name], alone[name]) for name in alone)
    with pytest.raises(InputError, match=r"toy seed 0 lr 9\.0: the loss is nan"):
        study.train("none", rates=(9.0,))


# --- a penalty of all domains of a step ------------------------------------------------------------------------------


class ByDomain(LlavaMole):
    """Every token of a domain goes to the domain's own expert."""

    def routing_weights(self, gate, seen, sizes):
        own = torch.nn.functional.one_hot(torch.tensor(seen.domain), sizes.experts - 1).float()
        plain = torch.eye(sizes.experts)[0]
        chosen = torch.nn.functional.pad(own, (1, 0)) if mlp_block(sizes.modules[seen.layer]) else plain
        return chosen.expand(*seen.input.shape[:-1], -1)


FOUR = {"a": "acg tta acg tta", "b": "will the user like it", "c": "yes", "d": "coding no no the user yes acg"}


@pytest.fixture
def step(tmp_path, monkeypatch):
    """(mixer, {domain: text}, batches of each in a step) → mixture in training, its first step's batches and loss."""
    base, handed = causal_base(tmp_path / "base", ears=False), []
    experts = {name: trained_adapter(base.model, Method(rank=2), seed) for seed, name in enumerate(FOUR)}
    monkeypatch.setattr(training, "train_model", lambda *given, **named: handed.append((given, named["hooks"])) or [])

    def begin(mixer, texts=FOUR, accumulated=1, **training_options):
        mixture = Mixture(base.model, mixer.prepare_experts(experts, 0), mixer, domains=list(texts))
        for layer in mixture.layers.values():
            layer.B.data.copy_(torch.randn(layer.B.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        examples = {
            name: [Example(f"{name}{i}", "g", "text ", f"{text} {'acg ' * i}") for i in range(accumulated)]
            for name, text in texts.items()
        }
        sets = {name: training.TrainingSet([*map(base.encode, each)]) for name, each in examples.items()}
        shared = {"learning_rate": 1.0, "warmup": 0.0, "decay": "constant", "clip": 1e9}
        budget = {"batch_tokens": 64 if accumulated == 1 else 16, "gradient_accumulation_steps": accumulated}
        recipe = Training(**budget | shared | training_options)
        training.optimise_mixture(base, opinionated(mixture), sets, {}, recipe, 0, job.Job("cpu", tmp_path, "toy"))
        (_, feed, loss, *_), hooks = handed[-1]

        def batches(step):
            made = feed(step)
            hooks.see_batches(made)
            return made

        return SimpleNamespace(base=base, mixture=mixture.train(), batches=batches, loss=loss, recipe=recipe)

    return begin


def test_four_domains_with_an_expert_each_cost_no_more_than_an_even_use_of_experts(step):
    given = step(ByDomain(mlp_experts=4, balance=0.01), dict.fromkeys(FOUR, "acg tta acg"))
    losses = [given.loss(micro) for micro in given.batches(0)]
    costs = [float(loss.extra) / loss.targets for loss in losses]
    assert len(costs) == 4 and sum(costs) / 4 == pytest.approx(0.010)


def test_one_expert_for_all_domains_costs_as_often_as_there_are_experts(step):
    given = step(ByDomain(mlp_experts=4, balance=0.01), {"a": "acg tta acg"})
    assert [float(loss.extra) / loss.targets for loss in map(given.loss, given.batches(0))] == pytest.approx([0.040])


@pytest.mark.parametrize("checkpoints", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_step_follows_the_balance_of_one_batch_of_all_domains(step, checkpoints, accumulated):
    given = step(LlavaMole(mlp_experts=4, balance=3.0), accumulated=accumulated)
    mixture, batches = given.mixture, given.batches(0)
    assert len({micro.batch["ids"].shape for micro in batches}) >= 4  # domains of unequal length
    parameters, total, found = mixture.trainable_parameters(), 0.0, []
    for micro in batches:
        mixture.domain = list(FOUR).index(micro.task)
        nats, _ = given.base.loss(mixture, micro.batch)
        total = total + nats / sum(other.targets for other in batches if other.task == micro.task) / len(FOUR)
        found.append(
            {name: w[..., 1:].flatten(0, 1) for name, w in mixture.routing_weights.items() if mlp_block(name)}
        )
    for name in found[0]:
        p = torch.cat([weights[name] for weights in found])
        sent = torch.bincount(p.argmax(1), minlength=4) / len(p)
        total = total + 3.0 * 4 * (sent * p.mean(0)).sum() / len(found[0])
    expected = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values()), allow_unused=True)))
    if checkpoints:
        mixture.checkpoint_gradients()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    sgd = torch.optim.SGD(parameters.values(), lr=1.0)
    hooks = fit.TrainingHooks()
    fit.update(parameters, given.batches(0), given.loss, sgd, given.recipe, 0, Accelerator(cpu=True), hooks, 0)
    routers = [name for name in parameters if name.startswith("gate")]
    assert len(routers) == 2 and all(expected[name].any() for name in routers)
    for name, parameter in parameters.items():
        torch.testing.assert_close(before[name] - parameter, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", [XLora(domain_loss=0.5, dropout=0), LlavaMole(mlp_experts=4, balance=3.0)])
def test_parts_of_a_batch_give_the_gate_the_gradient_of_the_whole(step, mixer):
    found = []
    for micro_batch_tokens in (None, 40):
        given = step(mixer, accumulated=3, batch_tokens=4096, micro_batch_tokens=micro_batch_tokens)
        batches = given.batches(0)
        parameters = given.mixture.trainable_parameters()
        loss = fit.update(
            *(parameters, batches, given.loss, torch.optim.SGD(parameters.values(), lr=0.0), given.recipe, 0),
            *(Accelerator(cpu=True), hooks := GradientNote(parameters), 0),
        )
        found.append((len(batches), loss, hooks.gradient))
        given.mixture.remove_experts()
    (whole, one, gradient), (parts, other, again) = found
    assert whole < parts and one[1] == other[1] and other[0] == pytest.approx(one[0], rel=1e-6)
    assert gradient.norm() > 0 and (again - gradient).norm() < 1e-6 * gradient.norm()


class GradientNote(fit.TrainingHooks):
    def __init__(self, parameters):
        self.parameters = parameters

    def after_step(self, step):
        self.gradient = torch.cat([p.grad.flatten() for p in self.parameters.values() if p.grad is not None])


def test_without_a_balance_no_step_begins_with_a_pass_to_count(step, calls):
    for balance, passes in ((0.0, 4), (0.01, 8)):
        given = step(LlavaMole(mlp_experts=4, balance=balance))
        calls[LlamaModel] = 0
        for micro in given.batches(0):
            given.loss(micro)
        assert calls[LlamaModel] == passes
        given.mixture.remove_experts()
