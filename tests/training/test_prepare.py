"""A given base can be taught to hear: only its projector learns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from models import causal_base, whisper_base

from loratory.bases.core import load_base
from loratory.bases.options import Pretrain
from loratory.config import Audio, BaseEntry, Training
from loratory.domains.lncrna.sources import Task as Transcripts
from loratory.domains.speech.sources import Task
from loratory.training.prepare import prepare_base


def general_speech(folder):
    """A dataset folder with a few tones and words."""
    folder.mkdir()
    rows = []
    for i in range(6):
        path = folder / f"{i}.flac"
        soundfile.write(path, np.sin(np.arange(12000 + 800 * i) * (0.04 + 0.02 * i)) * 0.3, 16000)
        sound = {"audio": str(path), "audio_sha256": "", "start": 0.0, "end": -1.0, "seconds": 0.75 + 0.05 * i}
        rows.append({"id": f"u{i}", "group": f"s{i}", "text": ["yes", "no"][i % 2], "speaker": "s"} | sound)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


def general_transcripts(folder):
    """A dataset folder with a few transcripts."""
    folder.mkdir()
    rows = [{"id": f"t{i}", "group": f"t{i}", "sequence": "ACGTTAGCA" * (4 + i), "label": i % 2} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


def test_a_given_base_learns_to_hear_and_nothing_else(tmp_path):
    source = causal_base(tmp_path / "source", ears=False)
    whisper_base(tmp_path / "ears")
    training = Training(steps=3, learning_rate=0.01, batch_tokens=200)
    audio = Audio(encoder="ears", stack=5, hidden=16, corpus="speech", training=training)
    entry = BaseEntry(family="causal", path=str(tmp_path / "source"), audio=audio)
    general, tasks = {"speech": general_speech(tmp_path / "speech")}, {"speech": Task()}
    places = (general, tasks, tmp_path / "ears", "cpu", tmp_path / "checkpoints")
    prepare_base("heard", entry, *places, tmp_path / "heard")
    base = load_base(tmp_path / "heard")
    encoder = load_base(tmp_path / "ears").model.model.encoder.state_dict()
    assert all(torch.equal(base.audio.encoder.state_dict()[name], tensor) for name, tensor in encoder.items())
    before = source.model.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert base.fingerprint != source.fingerprint
    prepare_base("heard", entry, *places, tmp_path / "again")
    assert load_base(tmp_path / "again").fingerprint == base.fingerprint
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_published_base_that_lies_here_is_taken_from_there_and_says_so(tmp_path):
    causal_base(tmp_path / "models" / "gpt", ears=False)
    commit = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
    entry = BaseEntry(family="causal", hub="someone/gpt", revision=commit, precision="bf16")
    places = ({}, {}, None, "cpu", tmp_path / "checkpoints", tmp_path / "gpt")
    prepare_base("gpt", entry, *places, folder=str(tmp_path / "models" / "gpt"))
    manifest = load_base(tmp_path / "gpt").manifest
    assert (manifest["origin"], manifest["revision"]) == ("someone/gpt", commit)
    assert (manifest["taken_from"], manifest["precision"]) == (str(tmp_path / "models" / "gpt"), "bf16")


def test_a_base_in_half_precision_learns_to_hear_as_any_other(tmp_path):
    causal_base(tmp_path / "source", ears=False)
    whisper_base(tmp_path / "ears", precision="bf16")
    audio = Audio(encoder="ears", hidden=16, corpus="speech", training=Training(steps=2, batch_tokens=200))
    entry = BaseEntry(family="causal", path=str(tmp_path / "source"), audio=audio, precision="bf16")
    places = ({"speech": general_speech(tmp_path / "speech")}, {"speech": Task()}, tmp_path / "ears", "cpu")
    prepare_base("heard", entry, *places, tmp_path / "checkpoints", tmp_path / "heard")
    base = load_base(tmp_path / "heard")
    assert base.model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in base.audio.parameters()} == {torch.float32}
    encoder = load_base(tmp_path / "ears", precision="fp32").model.model.encoder.state_dict()
    assert all(torch.equal(base.audio.encoder.state_dict()[name], tensor) for name, tensor in encoder.items())


LAYERS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDES = {
    f"{side}_{what}": n
    for side in ("encoder", "decoder")
    for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
}
ARCHITECTURES = {
    "causal": LAYERS,
    "encoder": LAYERS,
    "whisper": {"d_model": 16, "max_source_positions": 100, "max_target_positions": 32, **SIDES},
}


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_base_that_is_trained_here_opens_and_reads(family, tmp_path):
    pretrain = Pretrain(
        domains=["speech" if family == "whisper" else "lncrna"],
        architecture=ARCHITECTURES[family],
        vocabulary=300,
        training=Training(steps=2, batch_tokens=200),
    )
    entry = BaseEntry(family=family, pretrain=pretrain)
    general = {"speech": general_speech(tmp_path / "speech"), "lncrna": general_transcripts(tmp_path / "lncrna")}
    tasks = {"speech": Task(), "lncrna": Transcripts(window=60, stride=60)}
    prepare_base("mini", entry, general, tasks, None, "cpu", tmp_path / "checkpoints", tmp_path / "mini")
    base = load_base(tmp_path / "mini")
    assert base.manifest["origin"] == "pretrain" and base.loss(base.model, base.trial_batch())[0].isfinite()
