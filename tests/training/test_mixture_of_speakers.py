"""Experts by age group on one Whisper base: every mixer learns from clips, and is evaluated like any other."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from models import trained_adapter, whisper_base
from studies import as_records

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.config import Evaluation
from loratory.config import mixture_entry as entry
from loratory.data.files import read_json
from loratory.domains.dataset import record_schema, write_records
from loratory.domains.examples import domain_examples, read_records
from loratory.domains.speech.sources import Task
from loratory.evaluation.predict import TrainedModels, predict_domain
from loratory.mixers.store import open_mixture
from loratory.mixers.streams import voiced_positions
from loratory.training.mixture import train_mixture

AGES = {"speech-young": 6, "speech-old": 13}
OPTIONS = {"slide_lora": {"gating": "learned"}, "weighted_merge": {}}


def records(folder, domain: str, age: int) -> None:
    """Two tones a split; the younger, the higher."""
    folder.mkdir()
    build = registry.load_module("domain", domain, "build")
    for split in ("train", "gate", "valid", "test"):
        rows = []
        for i in range(2):
            path = folder / f"{split}{i}.wav"
            samples = np.sin(np.arange(int(16000 * (0.5 + 0.3 * i))) * 0.6 / age) * 0.4
            soundfile.write(path, samples, 16000)
            facts = {"audio": str(path), "audio_sha256": "", "start": 0.0, "end": -1.0, "text": "yes no", "sha256": ""}
            facts |= {"seconds": len(samples) / 16000, "gender": "f", "flaws": "", "read_in_train": False, "age": age}
            rows.append({"id": f"{domain}{split}{i}", "group": f"s{age}{i}", "speaker": f"s{age}{i}"} | facts)
        write_records(folder / f"{split}.parquet", build, as_records(rows, record_schema(build)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("speakers")
    base, data, adapters = whisper_base(root / "base"), {}, {}
    for place, (domain, age) in enumerate(AGES.items()):
        data[domain], adapters[domain] = root / domain, root / f"{domain}.lora"
        records(data[domain], domain, age)
        adapter = trained_adapter(base.model, Method(rank=2), place)
        adapter.run["base_sha256"] = base.fingerprint
        deltas.save_adapter(adapters[domain] / "seed0", adapter, causal=False)
    return SimpleNamespace(base=base, data=data, adapters=adapters, root=root)


def trained(study, mixer: str, out, **options):
    training = {"steps": 2, "batch_tokens": 400, "learning_rates": [0.01]}
    given = {"mixer": mixer, "base": "base", "experts": dict.fromkeys(AGES, "lora"), "training": training}
    tasks = dict.fromkeys(AGES, Task(max_new_tokens=8))
    places = (study.base.folder, study.adapters, study.data, tasks, (0,), "cpu", out / "checkpoints", 2, out / mixer)
    train_mixture("ages", entry(given | OPTIONS.get(mixer, {}) | options), *places)
    return out / mixer / "seed0"


def mixers_of_whisper() -> list[str]:
    names = registry.registered_names("mixer")
    return [name for name in names if "whisper" in registry.load_module("mixer", name).Mixer.families]


@pytest.mark.parametrize("mixer", mixers_of_whisper())
def test_every_mixer_learns_from_clips_and_writes(study, mixer, tmp_path):
    folder = trained(study, mixer, tmp_path)
    mixture = open_mixture(folder, study.base)
    mixture.domain = 0
    items = [study.base.encode(question) for question in questions(study, "speech-young")]
    assert len(study.base.text(mixture, items, 4)) == len(items)
    mixture.remove_experts()


def questions(study, domain: str) -> list:
    return domain_examples(domain, read_records(study.data[domain], "test"), Task(max_new_tokens=8), "whisper")


def test_one_weight_per_utterance_is_the_gate_on_the_mean_of_what_is_said(study, tmp_path):
    mixture = open_mixture(trained(study, "xlora", tmp_path, per="sequence", layerwise=False), study.base)
    items = [study.base.encode(question) for question in questions(study, "speech-old")]
    batch = study.base.collate(items)
    found = mixture.token_routing(**study.base.inputs(batch))
    mixture.requires_grad_(False)
    assert found.shape == (2, 1, 1, 2) and set(mixture.streams) == {"tokens"}
    assert any("encoder" in name for name in mixture.layers) and any("decoder" in name for name in mixture.layers)
    with mixture.context.use_weights(None):
        states = mixture.model.get_encoder()(batch["features"]).last_hidden_state
    for row in range(len(items)):
        last = int((batch["features"][row] > batch["features"][row].min()).any(0).nonzero().max())
        assert last < 120  # of 200: silence follows
        expected = mixture.gate["tokens"](states[row, : last // 2 + 1].mean(0)).softmax(-1)
        torch.testing.assert_close(found[row, 0, 0], expected, rtol=0, atol=1e-5)
    written = mixture.encode_audio(batch["features"])
    torch.testing.assert_close(written.weights["tokens"], mixture.mixer.select_weights(found))
    mixture.remove_experts()


def test_positions_behind_a_clip_are_not_of_it_and_a_level_of_nothing_is_all_alike():
    features = torch.full((3, 4, 10), -1.0)
    features[0, 2, :5], features[1, 0, :] = 0.5, 0.2
    found = voiced_positions(features, 5)
    assert found.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 5]


def test_age_groups_are_told_apart_compared_and_their_routing_counted(study, tmp_path):
    gate = trained(study, "xlora", tmp_path, per="sequence")
    pooled = trained(study, "pooled", tmp_path)
    adapters = {f"lora@{domain}": study.adapters[domain] / "seed0" for domain in AGES}
    made = {0: TrainedModels(adapters, {"gate": gate, "pooled": pooled})}
    places = study.data["speech-old"], Task(max_new_tokens=8), study.base.folder
    predict_domain("speech-old", *places, made, ("test",), Evaluation(), "cpu", tmp_path)
    systems = set(pq.read_table(tmp_path / "seed0.parquet").column("system").to_pylist())
    controls = {f"{name}:{control}" for name in ("gate", "pooled") for control in ("uniform", "oracle")}
    assert systems == {"base", *adapters, "gate", "pooled", "gate:shuffled", *controls}
    routing = read_json(tmp_path / "seed0.routing.json")["gate"]
    assert routing["experts"] == list(AGES) and sum(routing["weights"]) == pytest.approx(1)
    assert len(routing["layers"]) == len(routing["modules"]) > 1


@pytest.mark.parametrize("options", [{}, {"per": "sequence"}, {"mixer": "meteora"}], ids=str)
def test_experts_of_the_encoder_alone_have_routes_to_show(study, tmp_path, options):
    own = SimpleNamespace(**vars(study) | {"adapters": {}})
    for place, domain in enumerate(AGES):
        adapter = trained_adapter(study.base.model, Method(rank=2, target_modules=("fc1",)), place)
        for name in [name for name in adapter.deltas if "decoder" in name]:
            del adapter.deltas[name]
        adapter.run["base_sha256"] = study.base.fingerprint
        own.adapters[domain] = tmp_path / f"{domain}.lora"
        deltas.save_adapter(own.adapters[domain] / "seed0", adapter, causal=False)
    mixture = open_mixture(trained(own, options.pop("mixer", "xlora"), tmp_path, **options), study.base)
    batch = study.base.collate([study.base.encode(question) for question in questions(study, "speech-old")])
    found = mixture.token_routing(**study.base.inputs(batch))
    assert found.shape == (2, 1, 1, 2) and len(mixture.layers) == 1
    mixture.remove_experts()
