"""The forecast counts what a study reads, and says what it cannot count."""

import json
import re
import struct

import pytest
from studies import changed, shipped

from loratory import forecast
from loratory.bases.memory import count_file_parameters
from loratory.config import read_config


def minutes(config: dict, monkeypatch, speed: float = 1e9) -> float:
    monkeypatch.setattr(forecast, "multiplication_speed", lambda: speed)
    return float(re.search(r"about (\d+) minutes", forecast.study_forecast(read_config(config, "study"), 2))[1])


@pytest.fixture
def study() -> dict:
    demo = shipped("config")
    return changed(demo, {"adapters.lora.training.steps": 20_000, "evaluation.max_records": 5_000})


def test_twice_the_speed_takes_half_the_time(study, monkeypatch):
    slow, fast = (minutes(study, monkeypatch, speed) for speed in (1e8, 2e8))
    assert fast == pytest.approx(slow / 2, rel=0.02)


@pytest.mark.parametrize(
    "changes", [{"adapters.lora.training.learning_rates": [0.1, 0.2]}, {"seeds": [0, 1, 2, 3]}, {"seeds": [0]}]
)
def test_another_run_of_every_adapter_costs_its_steps(changes, study, monkeypatch):
    """Of 20,000 steps of 1,536 positions; what else the runs read is in the hundredths."""
    runs = {"seeds": len(changes.get("seeds", study["seeds"])), "rates": 2 if "seeds" not in changes else 1}
    config = read_config(changed(study, changes), "study")
    trained = sum(
        read for part, base, read, _ in forecast.model_jobs(config) if part == "adapters" and base == "mini_lm"
    )
    assert trained == 4 * (runs["seeds"] + runs["rates"] - 1) * 20_000 * 1_536


def test_several_batches_a_step_cost_as_much_as_so_many_steps(study):
    counts = []
    for factor, key in ((3, "gradient_accumulation_steps"), (60_000, "steps")):
        config = read_config(changed(study, {f"adapters.lora.training.{key}": factor}), "study")
        counts.append([*forecast.model_jobs(config)])
    assert counts[0] == counts[1]


def test_numbers_are_counted_from_headers_alone(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "a": {"shape": [3, 4]}, "b": {"shape": [5]}, "c": {"shape": []}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert count_file_parameters(tmp_path / "model.safetensors") == 12 + 5 + 1


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\x04\0\0\0\0\0\0\0null"]
)
def test_what_is_no_weights_file_stops_nothing_before_it_is_opened(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert count_file_parameters(tmp_path / "model.safetensors") == 0


def test_a_base_that_is_not_here_yet_counts_with_the_size_that_the_config_gives():
    real = shipped("real")
    line = forecast.study_forecast(read_config(real, "study"), 2)
    assert "unknown size" not in line
    del real["bases"]["smollm2_135m"]["parameters"]
    line = forecast.study_forecast(read_config(real, "study"), 2)
    assert line.endswith("; not counted, as of unknown size: smollm2_135m.")
