"""Steps that are replayed: the same training as passes one by one, of padded batches and of those that are not."""

import importlib
from functools import cache

import pytest
import torch
from models import causal_base, trained_adapter
from torch.utils._python_dispatch import TorchDispatchMode

from loratory import registry
from loratory.adapters.methods.lora import Method as LoRA
from loratory.bases.core import load_base
from loratory.config import adapter_entry, mixture_entry
from loratory.data.batching import fixed_shape
from loratory.domains.contract import Example
from loratory.mixers.core import Mixture
from loratory.training import mixture as mixtures
from loratory.training import replay, sweep
from loratory.training.job import Job
from loratory.training.schedule import Training

METHODS = registry.registered_names("method")
REPLAYABLE = [name for name in METHODS if registry.load_module("method", name).Method.replayable]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


class Tape(TorchDispatchMode):
    """What a CUDA graph is to a CPU: the operations of a pass, done again on the tensors that they had. Unlike a
    graph's they are done while they are noted, so the first replay does nothing."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, before in self.calls if self.replays > 1 else ():
            after = func(*args, **kwargs)
            pairs = zip(before, after) if isinstance(before, tuple | list) else [(before, after)]
            for old, new in pairs:
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def reset(self):
        self.calls.clear()


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def replays(monkeypatch, device):
    """Lets trainings be replayed, on a CPU from tapes; returns a list that gets what is captured."""
    captured, record_graph = [], replay.record_kernels

    def record_tape(run, pool, stream):
        with Tape() as tape:
            run()
        return tape

    def record(*given):
        captured.append((record_tape if device == "cpu" else record_graph)(*given))
        return captured[-1]

    monkeypatch.setattr(replay, "is_accelerated", lambda device: True)
    monkeypatch.setattr(replay, "record_kernels", record)
    return captured


@pytest.fixture
def refuse_captures(monkeypatch):
    def refuse(run, pool, stream):
        raise RuntimeError("no graphs here")

    return lambda: monkeypatch.setattr(replay, "record_kernels", refuse)


@pytest.fixture
def replay_nothing(monkeypatch):
    return lambda: monkeypatch.setattr(replay, "is_accelerated", lambda device: False)


@pytest.fixture
def base(tmp_path, device):
    return load_base(causal_base(tmp_path / "base", ears=False).folder, device)


def ragged_items(base):
    """Examples of unequal lengths, of which batches of two shapes are made."""
    text = "transcribe speech to text will the user like it"
    cuts = [(3, 4), (4, 4), (4, 6), (5, 5), (12, 10), (13, 9), (13, 10), (12, 11)]
    return [base.encode(Example(f"{n}", f"{n}", text[:n], text[n : n + k])) for n, k in cuts]


def train_adapter(base, folder, method="lora", recipe=None, **options):
    training = {"steps": 6, "batch_tokens": 40, "learning_rates": [0.01]} | (recipe or {})
    entry = adapter_entry({"method": method, "training": training} | options)
    items = ragged_items(base)
    job = Job(str(base.device), folder, "toy")
    return sweep.train_one(base, {"train": items, "valid": items}, entry, 0, 0.01, job)


def train_gate(base, folder, steps=6, **options):
    experts = {name: trained_adapter(base.model, LoRA(rank=2 + i), i) for i, name in enumerate("ab")}
    mixer = {"mixer": "xlora", "base": "tiny", "experts": dict.fromkeys("ab", "lora")} | options
    training = {"training": {"steps": steps, "batch_tokens": 40, "learning_rates": [0.01]}}
    entry = mixture_entry(mixer | training)
    torch.manual_seed(0)
    mixture = Mixture(base.model, experts, entry)
    sets = {name: mixtures.TrainingSet(ragged_items(base)[place:]) for place, name in enumerate("ab")}
    job = Job(str(base.device), folder, "gate")
    curve = mixtures.optimise_mixture(base, mixture, sets, {}, entry.training.at_rate(0.01), 0, job)
    gate = torch.cat([p.detach().flatten() for p in mixture.trainable_parameters().values()])
    mixture.remove_experts()
    return {"gate": gate, "curve": curve}


def learnt(trial) -> torch.Tensor:
    if "gate" in trial:
        return trial["gate"]
    adapter = trial["adapter"]
    parts = [part for delta in adapter.deltas.values() for part in (delta.A, delta.B)] + [*adapter.dense.values()]
    return torch.cat([part.flatten().float() for part in parts])


def losses(trial) -> list[float]:
    return [point["loss"] for point in trial["curve"]]


def check_same(one, other, device, close=CLOSE) -> None:
    """To the last bit on a CPU; a GPU may sum in another order."""
    if device == "cpu":
        assert torch.equal(learnt(one), learnt(other)) and losses(one) == losses(other)
    torch.testing.assert_close(learnt(one), learnt(other), **close)
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)


@cache
def options_of(method: str) -> dict:
    return importlib.import_module(f"methods.test_{method}").ROW.options


@pytest.mark.parametrize("method", REPLAYABLE)
def test_a_replayed_training_is_the_one_that_is_not(
    method, base, device, tmp_path, replays, refuse_captures, replay_nothing
):
    options = options_of(method)
    found = train_adapter(base, tmp_path / "replayed", method, **options)
    assert replays, "nothing was replayed"
    refuse_captures()
    apart = train_adapter(base, tmp_path / "apart", method, **options)
    check_same(found, apart, device)
    assert found["optimizer_state"] == apart["optimizer_state"]
    replay_nothing()
    plain = train_adapter(base, tmp_path / "plain", method, **options)
    torch.testing.assert_close(learnt(found), learnt(plain), **CLOSE)
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
    assert plain["positions"] < found["positions"], "batches in few shapes are padded more"


GATES = {
    "linear": {},
    "deep": {"depth": 2, "width": 8, "dropout": 0.3},
    "sequence": {"per": "sequence", "top_k": 1},
    "input": {"mixer": "smora", "active": 2},
}


@pytest.mark.parametrize("options", GATES.values(), ids=GATES)
def test_a_replayed_gate_is_the_one_that_is_not(
    options, base, device, tmp_path, replays, refuse_captures, replay_nothing
):
    found = train_gate(base, tmp_path / "replayed", **options)
    assert replays
    refuse_captures()
    check_same(found, train_gate(base, tmp_path / "apart", **options), device)
    if "dropout" not in options:  # whose draws depend on the shape
        replay_nothing()
        plain = train_gate(base, tmp_path / "plain", **options)
        torch.testing.assert_close(learnt(found), learnt(plain), **CLOSE)


def test_dropout_of_a_replay_is_drawn_anew_and_as_it_would_be_in_a_pass(
    base, device, tmp_path, replays, refuse_captures
):
    found = train_adapter(base, tmp_path / "replayed", dropout=0.5)
    assert replays
    refuse_captures()
    check_same(found, train_adapter(base, tmp_path / "apart", dropout=0.5), device)


def test_micro_batches_of_a_step_add_up(base, device, tmp_path, replays, replay_nothing):
    recipe = {"gradient_accumulation_steps": 2, "micro_batch_tokens": 20}
    found = train_adapter(base, tmp_path / "replayed", recipe=recipe)
    assert replays
    replay_nothing()
    plain = train_adapter(base, tmp_path / "plain", recipe=recipe)
    torch.testing.assert_close(learnt(found), learnt(plain), **CLOSE)
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)


def test_a_training_that_is_killed_goes_on_as_if_it_were_not(base, device, tmp_path, replays, kill_in_step):
    given = {"dropout": 0.2, "recipe": {"save_every": 2}}
    whole = train_adapter(base, tmp_path / "whole", **given)
    kill_in_step(6, lambda: train_adapter(base, tmp_path / "parts", **given))
    check_same(train_adapter(base, tmp_path / "parts", **given), whole, device)


def test_what_needs_the_host_in_a_pass_is_not_replayed_and_the_log_says_so_once(
    base, device, tmp_path, replays, replay_nothing, capsys
):
    base.model.model.layers[0].register_forward_pre_hook(lambda layer, args: args[0].sum().item() and None)
    found = train_adapter(base, tmp_path / "watched")
    assert not replays
    assert capsys.readouterr().out.count("steps are not replayed: `_local_scalar_dense` needs the host") == 1
    replay_nothing()
    torch.testing.assert_close(learnt(found), learnt(train_adapter(base, tmp_path / "plain")), **CLOSE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_capture_that_fails_leaves_nothing_behind(base, device, tmp_path, replays, refuse_captures, monkeypatch):
    monkeypatch.setattr(replay.HostReads, "READS", ())
    hook = base.model.model.layers[0].register_forward_pre_hook(lambda layer, args: args[0].sum().item() and None)
    found = train_adapter(base, tmp_path / "failed", dropout=0.5)
    assert not replays
    hook.remove()
    refuse_captures()
    check_same(found, train_adapter(base, tmp_path / "apart", dropout=0.5), device)


def test_a_batch_in_one_of_few_shapes_has_the_same_loss(base):
    letters = tuple("MKTAYI")
    for rows, alphabet in ((5, ()), (7, letters)):
        target = "MKTAYIAKMKTAYIAKMKT" if alphabet else "the user will"
        prompts = {n: "speech to text" * (n + 2) for n in range(rows)}
        examples = [Example(f"{n}", "", prompts[n], target[n:], alphabet=alphabet) for n in prompts]
        batch = base.collate([base.encode(example) for example in examples])
        fixed = base.fixed_batch(batch, 300)
        assert fixed["ids"].shape != batch["ids"].shape == fixed["labels"][:rows, : batch["ids"].shape[1]].shape
        total, targets = base.loss(base.model, batch)
        torch.testing.assert_close(base.summed_nll(base.model, fixed), total, rtol=1e-5, atol=1e-5)
        assert base.count_targets(fixed) == targets
        with replay.unpacked_rows(), replay.HostReads() as reads:
            base.summed_nll(base.model, fixed)
        assert not reads.first


def test_shapes_are_few_and_no_batch_is_padded_much():
    shapes, most = set(), 0.0
    for length in range(50, 1001):
        rows = 4096 // length
        shape = fixed_shape(rows, length, 4096, 1024)
        assert shape[0] >= rows and shape[1] >= length
        assert fixed_shape(*shape, 4096, 1024) == shape
        shapes.add(shape)
        most = max(most, shape[0] * shape[1] / 4096)
    assert len(shapes) < 40 and most < 1.15
    assert fixed_shape(1, 2000, 64, 2000) == (1, 2000), "no row is longer than the base's context"
    assert fixed_shape(3, 50, 4096, 64)[0] < 8, "a small batch is not filled up"


@pytest.mark.parametrize("change", ["method", "recipe", "checkpointing", "cpu", None])
def test_a_training_is_replayed_where_it_is_safe_and_gains(base, change, monkeypatch):
    monkeypatch.setattr(replay, "is_accelerated", lambda device: change != "cpu")
    if change == "checkpointing":
        base.model.model.layers[0].gradient_checkpointing = True
    recipe = Training(batch_tokens=1 << 40 if change == "recipe" else 64)
    assert replay.may_replay(base.model, change != "method", recipe) == (change is None)
