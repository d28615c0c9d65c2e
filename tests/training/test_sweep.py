"""Which of a sweep's runs are made, which rate is chosen, and what is kept of the others."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import FAMILIES

from loratory.adapters import core
from loratory.adapters.deltas import Adapter
from loratory.config import adapter_entry
from loratory.errors import InputError
from loratory.training import encoding, job, sweep

TRAINING = {"steps": 2, "batch_tokens": 24}
RATES = (0.1, 0.2, 0.3)


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """Runs a sweep whose trainings end at once with the given {rate: validation loss}; a missing rate diverges."""
    made, jobs, sets_seen = [], [], []

    def train_one(base, sets, method, seed, rate, job):
        made.append((seed, rate))
        jobs.append(job)
        if rate not in losses:
            raise InputError("toy", "the loss is nan", reason="diverged")
        sets_seen.append(sets)
        curve = [{"step": 0, "loss": 1.0, "scheduled_rate": rate / 7, "valid_loss": losses[rate]}]
        return {"adapter": Adapter(), "curve": curve, "valid_loss": losses[rate], "transposed": False}

    losses = {}
    base = SimpleNamespace(fingerprint="", family="causal", manifest={"name": "mini"})
    monkeypatch.setattr(sweep, "load_base", lambda *_: base)
    for read in ("encode_split", "training_split"):
        monkeypatch.setattr(sweep, read, lambda base, domain, data, task, split, limit=None: [(split, limit)])
    monkeypatch.setattr(sweep, "require_training_room", lambda *_: None)
    monkeypatch.setattr(sweep, "data_digests", lambda *_: [])
    monkeypatch.setattr(sweep, "adapter_code", lambda *_: "as it is")
    monkeypatch.setattr(sweep, "describe_run", lambda base, domain, method, seed, trial, data: {"rate": trial["rate"]})
    monkeypatch.setattr(sweep, "train_one", train_one)

    def run(**given):
        losses.update({float(rate): loss for rate, loss in given["losses"].items()})
        entry = adapter_entry({"method": "lora", "training": {"learning_rates": RATES}})
        task = SimpleNamespace(model_dump=lambda mode: {})
        sweep.train_sweep("toy", "", task, "", entry, (0, 1, 2), "cpu", tmp_path / "checkpoints", 4, tmp_path / "out")
        rows = pq.read_table(tmp_path / "out" / "runs.parquet").to_pylist()
        run.scheduled = [row["scheduled_rate"] for row in rows]
        return made, [(row["seed"], row["learning_rate"], row["valid_loss"]) for row in rows]

    run.jobs, run.manifest, run.sets = jobs, base.manifest, sets_seen
    return run


def facts(jobs) -> list[tuple]:
    return [(job.folder, job.made_with) for job in jobs]


def test_the_grid_is_tried_on_one_seed_and_the_best_rate_on_the_others(swept):
    made, kept = swept(losses={0.1: 3.0, 0.2: 1.0, 0.3: 2.0})
    assert made == [(0, 0.1), (0, 0.2), (0, 0.3), (1, 0.2), (2, 0.2)]
    assert kept == [(0, 0.1, 3.0), (0, 0.2, 1.0), (0, 0.3, 2.0), (1, 0.2, 1.0), (2, 0.2, 1.0)]
    assert swept.scheduled == pytest.approx([rate / 7 for _, rate in made]), "beside the run's own rate"


def test_a_run_learns_from_train_and_is_chosen_by_valid_of_which_no_more_than_the_limit_is_read(swept):
    swept(losses={0.1: 3.0, 0.2: 1.0, 0.3: 2.0})
    assert all(sets == {"train": [("train", None)], "valid": [("valid", 4)]} for sets in swept.sets)


def test_the_loss_that_chooses_a_rate_is_that_of_the_valid_items_after_training(tmp_path):
    toy = FAMILIES["llama"]()
    entry = adapter_entry({"method": "lora", "training": TRAINING})
    sets = {"train": toy.items[:2], "valid": toy.items[2:]}
    trial = sweep.train_one(toy, sets, entry, 0, 0.01, sweep.Job("cpu", tmp_path, "toy"))
    core.apply(toy.model, trial["adapter"], "toy")
    expected = {name: sweep.mean_loss(toy, toy.model, items, 24) for name, items in sets.items()}
    assert trial["valid_loss"] == pytest.approx(expected["valid"], rel=1e-5)
    assert trial["valid_loss"] != pytest.approx(expected["train"], rel=1e-3)


def test_examples_come_from_the_file_of_the_split_that_was_asked(tmp_path, monkeypatch):
    for split in ("train", "gate", "valid", "test"):
        rows = [{"id": f"{split}{i}", "group": "g", "text": split} for i in range(3)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    monkeypatch.setattr(encoding, "domain_examples", lambda domain, records, task, family: [*map(as_example, records)])
    monkeypatch.setattr(encoding, "check_readable", lambda *_: None)
    base = SimpleNamespace(family="causal", encode=as_encoded, check_choices=lambda _: None)
    for split in ("train", "gate", "valid", "test"):
        assert [item.ids for item in sweep.encode_split(base, "toy", tmp_path, None, split)] == [split] * 3
        assert [item.ids for item in sweep.encode_split(base, "toy", tmp_path, None, split, 2)] == [split] * 2


def as_example(record) -> SimpleNamespace:
    return SimpleNamespace(prompt="", target=record["text"], choices=())


def as_encoded(example) -> SimpleNamespace:
    return SimpleNamespace(ids=example.target, length=len(example.target))


def test_a_rate_that_diverges_is_left_out_of_the_choice(swept):
    made, kept = swept(losses={0.2: 1.0, 0.1: 3.0})
    assert made[-1] == (2, 0.2) and len(made) == 5
    assert 0.3 not in {rate for _, rate, _ in kept}


def test_a_validation_loss_that_is_no_number_is_never_the_best(swept):
    made, _ = swept(losses={0.1: float("nan"), 0.2: 5.0, 0.3: float("nan")})
    assert made[-1] == (2, 0.2)


def test_a_grid_that_diverges_everywhere_ends_the_job(swept):
    with pytest.raises(InputError, match="the loss is nan"):
        swept(losses={})


ALL = {0.1: 1.0, 0.2: 2.0, 0.3: 3.0}


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"whisper": {"window": "clip"}}])
def test_the_checkpoints_of_a_base_that_is_held_or_asked_otherwise_are_others(swept, change):
    for manifest in ({"name": "mini", "precision": "fp32", "whisper": {"window": "full"}}, change, {}):
        swept.manifest |= manifest
        swept(losses=ALL)
    before, after, again = (facts(swept.jobs[i : i + 5]) for i in (0, 5, 10))
    assert after == again and not [pair for pair in before if pair in after]


@pytest.mark.parametrize(
    ("place", "name", "given"),
    [
        (sweep, "adapter_code", lambda *_: "edited"),
        (sweep, "data_digests", lambda *_: ["other"]),
        (job, "package_versions", lambda: {"torch": "0.0"}),
    ],
    ids=["code", "data", "versions"],
)
def test_the_checkpoints_of_other_code_data_or_packages_are_others(swept, monkeypatch, place, name, given):
    swept(losses=ALL)
    monkeypatch.setattr(place, name, given)
    swept(losses=ALL)
    before, after = facts(swept.jobs[:5]), facts(swept.jobs[5:])
    assert [folder for folder, _ in before] == [folder for folder, _ in after]
    assert not [known for _, known in before if known in [known for _, known in after]]


def test_each_training_of_a_sweep_has_its_own_checkpoints_and_another_sweep_has_others(swept, tmp_path):
    swept(losses=ALL)
    assert len({job.folder for job in swept.jobs}) == 5 and len({job.home for job in swept.jobs}) == 1
    one, other = (job.Job("cpu", tmp_path, "lora", out).folder for out in ("a/rank8", "a/rank16"))
    assert one != other


def test_a_method_that_is_edited_after_a_kill_is_trained_from_its_beginning(
    tmp_path, monkeypatch, kill_in_step, capsys
):
    entry = adapter_entry({"method": "lora", "training": TRAINING | {"steps": 6, "save_every": 2}})

    def trial(folder, code):
        toy = FAMILIES["llama"]()
        place = job.Job("cpu", tmp_path / folder, "toy", code=code)
        found = sweep.train_one(toy, {"train": toy.items, "valid": toy.items}, entry, 0, 0.01, place)
        return [point["loss"] for point in found["curve"]]

    kill_in_step(4, lambda: trial("killed", "a1"))
    monkeypatch.setattr(type(entry), "scale", property(lambda self: 10.0))  # the edit
    assert trial("killed", "b2") == trial("undisturbed", "b2")
    said = capsys.readouterr().out
    assert said.count("was made with other code (a1 → b2); put aside: training begins anew") == 1


def test_what_fails_behind_the_last_step_costs_no_step(tmp_path, monkeypatch):
    entry = adapter_entry({"method": "lora", "training": TRAINING})
    assert entry.training.save_every > entry.training.steps

    def trial():
        toy = FAMILIES["llama"]()
        sets = {"train": toy.items, "valid": toy.items}
        return sweep.train_one(toy, sets, entry, 0, 0.01, sweep.Job("cpu", tmp_path, "toy"))

    def fail(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(sweep.core, "export", fail)
        trial()
    monkeypatch.setitem(sweep.train_model.__globals__, "update", fail)
    again = trial()
    assert [point["step"] for point in again["curve"]] == [0, 1] and again["valid_loss"] > 0
    assert all(delta.B.any() for delta in again["adapter"].deltas.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_dense_change_is_cut_to_its_export_rank_and_what_is_lost_is_told(family, rank, tmp_path):
    toy = FAMILIES[family]()
    entry = adapter_entry({"method": "full_ft", "export_rank": rank, "training": TRAINING})
    job = sweep.Job("cpu", tmp_path, "toy")
    trial = sweep.train_one(toy, {"train": toy.items, "valid": toy.items}, entry, 0, 0.01, job)
    found = trial["adapter"]
    assert trial["transposed"] == (family == "gpt2")
    if rank is None:
        assert found.dense and not found.deltas and trial["lost"] == 0
    else:
        assert {delta.rank for delta in found.deltas.values()} == {2} and not found.dense
        assert 0 < trial["lost"] < 1
