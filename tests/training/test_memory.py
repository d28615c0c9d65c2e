"""The estimate of a training's memory is near what is measured, and what cannot fit is refused before it is loaded."""

import models
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from loratory.adapters import core
from loratory.adapters.methods import dora, full_ft, lora, peft, pissa
from loratory.bases import memory as sizes
from loratory.bases.core import load_base
from loratory.config import adapter_entry
from loratory.errors import InputError
from loratory.training import memory, sweep
from loratory.training.memory import Sharing, estimate_training
from loratory.training.schedule import Training
from loratory.training.sweep import train_sweep

ROWS, LENGTH = 8, 256


@pytest.fixture
def wide(monkeypatch):
    """Bases of four layers that are wide enough for activations to count."""
    make = models.llama
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "max_position_embeddings": 512}
    monkeypatch.setattr(models, "llama", lambda vocab_size: make(vocab_size, **sizes))


def measured_peak(base, method, recipe) -> int:
    """Bytes of the base and of all that two steps on it ask the allocator for, at the peak."""

    def two_steps() -> None:
        core.attach(base.model, method, 0, base.heads)
        parameters = list(core.trainable_parameters(base.model).values())
        optimizer = torch.optim.AdamW(parameters)
        ids = torch.randint(3, 60, (ROWS, LENGTH))
        batch = {"ids": ids, "mask": torch.ones_like(ids), "labels": ids}
        base.model.train()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss, _ = base.loss(base.model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        two_steps()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = sum(p.numel() * p.element_size() for p in base.model.parameters() if p.dim() and not p.requires_grad)
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


CASES = [
    ("fp32", "fp32", lora.Method(rank=8)),
    ("fp32", "bf16", lora.Method(rank=8)),
    ("bf16", "fp32", pissa.Method(rank=8)),
    ("bf16", "fp32", dora.Method(rank=8)),
    ("fp32", "fp32", full_ft.Method()),
    ("bf16", "fp32", full_ft.Method()),
]


@pytest.mark.parametrize(("held", "computed", "method"), CASES)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(held, computed, method, wide, tmp_path):
    models.causal_base(tmp_path / "base", ears=False, precision=held)
    recipe = Training(batch_tokens=ROWS * LENGTH, precision=computed)
    estimate = estimate_training(tmp_path / "base", method, recipe, "cpu")
    peak = measured_peak(load_base(tmp_path / "base"), method, recipe)
    assert estimate.positions == ROWS * LENGTH
    assert 0.8 < estimate.total / peak < 1.2, (str(estimate), peak)


def test_weights_count_by_the_precision_that_holds_them(wide, tmp_path):
    found = {}
    for held in ("fp32", "bf16", "int8", "nf4"):
        models.causal_base(tmp_path / held, ears=False, precision="fp32" if held in ("int8", "nf4") else held)
        path = tmp_path / held / "base.json"
        path.write_text(path.read_text().replace('"precision": "fp32"', f'"precision": "{held}"'))
        found[held] = estimate_training(tmp_path / held, lora.Method(), Training(batch_tokens=64), "cpu")
    linear = 4 * (4 * 128 * 128 + 3 * 128 * 384)
    assert found["fp32"].weights - found["bf16"].weights > 2 * linear
    assert found["bf16"].weights - found["int8"].weights == pytest.approx(linear, rel=0.3)
    assert found["bf16"].weights - found["nf4"].weights == pytest.approx(1.48 * linear, rel=0.3)
    assert len({estimate.learnt for estimate in found.values()}) == 1
    copied = 64 * 3 * 4 * (6 * 128 + 384)  # of each position the inputs of seven linear layers of four blocks
    assert found["int8"].passing - found["bf16"].passing == copied and found["nf4"].passing == found["bf16"].passing


def test_parts_of_a_batch_and_activations_computed_anew_take_less(wide, tmp_path):
    models.causal_base(tmp_path / "base", ears=False)
    whole, part = (Training(batch_tokens=2048, micro_batch_tokens=most) for most in (None, 512))
    found = [estimate_training(tmp_path / "base", lora.Method(), recipe, "cpu") for recipe in (whole, part)]
    assert part.pass_tokens == found[1].positions == 512 and found[1].passing < 0.5 * found[0].passing
    anew = estimate_training(tmp_path / "base", lora.Method(), whole, "cpu", Sharing(recompute=True))
    assert anew.passing < 0.8 * found[0].passing and anew.learnt == found[0].learnt


def test_processes_hold_layers_in_parts_and_runs_that_share_a_pass_hold_all_but_the_weights_each(wide, tmp_path):
    models.causal_base(tmp_path / "base", ears=False)
    sizes = [Sharing(), Sharing(processes=8), Sharing(runs=3)]
    alone, parted, together = (
        estimate_training(tmp_path / "base", lora.Method(), Training(batch_tokens=256), "cpu", how) for how in sizes
    )
    layer = 4 * (4 * 128 * 128 + 3 * 128 * 384 + 2 * 128)
    assert alone.weights - parted.weights == 4 * layer * 7 // 8 - 2 * layer
    assert (parted.learnt, parted.passing) == (alone.learnt, alone.passing)
    assert together.weights == alone.weights and together.total - alone.total == 2 * (alone.learnt + alone.passing)
    assert together.positions == 3 * alone.positions


def test_a_sweep_is_estimated_as_it_is_trained(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sweep, "require_training_room", lambda *given: asked.append(given[-1]))
    monkeypatch.setattr(sweep, "load_base", lambda *_: None)
    monkeypatch.setattr(sweep, "load_shared_base", lambda *_: None)
    shared = {"sharding": "fsdp", "processes": 2, "gradient_accumulation_steps": 2}
    for device, options in (("cuda", {}), ("cpu", {}), ("cuda", shared), ("cuda", {"micro_batch_tokens": 8})):
        entry = adapter_entry({"method": "lora", "training": {"together": 8, "learning_rates": [1, 2], **options}})
        sweep.open_base(tmp_path, entry, device, seeds=4)
    assert asked == [Sharing(runs=3), Sharing(), Sharing(processes=2), Sharing()]


def test_a_method_whose_start_reads_numbers_counts_as_a_lora(tmp_path):
    models.causal_base(tmp_path / "base", ears=False)
    own = estimate_training(tmp_path / "base", peft.Method(type="vera"), Training(batch_tokens=64), "cpu")
    assert own.learnt == estimate_training(tmp_path / "base", lora.Method(), Training(batch_tokens=64), "cpu").learnt


def test_what_cannot_fit_is_refused_with_the_estimate_before_it_is_loaded(tmp_path, monkeypatch):
    models.causal_base(tmp_path / "base", ears=False)
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    monkeypatch.setattr("loratory.training.sweep.load_base", lambda *_: pytest.fail("it was loaded"))
    entry = adapter_entry({"method": "lora", "training": {"batch_tokens": 2048}})
    places = ("cpu", tmp_path / "checkpoints", 4, tmp_path / "out")
    line = (
        r"base: training on it takes about 0\.0\d GB: weights .*, activations and logits of 2048 positions 0\.\d\d GB "
    )
    with pytest.raises(InputError, match=line + r"\(0.00 GB free on cpu\); fix: set `micro_batch_tokens`"):
        train_sweep("protein", tmp_path, None, tmp_path / "base", entry, (0,), *places)


def test_weights_alone_that_cannot_fit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    models.causal_base(tmp_path / "base", ears=False)
    monkeypatch.setattr(sizes, "SMALL", 0)
    monkeypatch.setattr(sizes, "free_bytes", lambda device: 100)
    with pytest.raises(InputError, match=r"base: its weights in fp32 take at least 0.00 GB \(0.00 GB free on cpu\)"):
        load_base(tmp_path / "base")


def test_a_container_has_no_more_than_its_limit(tmp_path, monkeypatch):
    whole = sizes.free_bytes("cpu")
    (tmp_path / "limit").write_text("123456\n")
    monkeypatch.setattr(sizes, "CGROUPS", (str(tmp_path / "limit"),))
    assert sizes.free_bytes("cpu") == 123456 < whole
