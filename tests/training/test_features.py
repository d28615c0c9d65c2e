"""A base's states on disk: the numbers of the base alone, in order, whatever a job was cut into."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import causal_base, encoder_base, whisper_base
from studies import as_records

from loratory import registry
from loratory.data.files import read_json
from loratory.domains.dataset import record_schema, write_records
from loratory.errors import InputError
from loratory.training import features
from loratory.training.features import INDEX, open_features, pad_states, write_features

CLOSE = {"rtol": 0, "atol": 1e-6}
TASK = registry.load_module("domain", "lncrna", "sources").Task()


def transcripts(folder, seed: int = 0) -> None:
    """A dataset of twelve short transcripts of unequal lengths."""
    draw, build = np.random.default_rng(seed), registry.load_module("domain", "lncrna", "build")
    codons = ["ACG", "TTA", "GCA", "CGT"]  # all that the tiny encoder knows
    letters = ["".join(draw.choice(codons, int(draw.integers(3, 14)))) for _ in range(12)]
    rows = [
        {"id": f"r{i:02d}", "group": f"g{i}", "sequence": s, "length": len(s), "label": i % 2, "gene": ""}
        for i, s in enumerate(letters)
    ]
    folder.mkdir()
    write_records(folder / "gate.parquet", build, as_records(rows, record_schema(build)))


@pytest.fixture
def study(tmp_path):
    """A causal base and a dataset; `write` makes the features of its `gate` split with shards of so many positions."""
    base = causal_base(tmp_path / "base", ears=False)
    transcripts(tmp_path / "data")
    items = features.encode_split(base, "lncrna", tmp_path / "data", TASK, "gate")
    found = SimpleNamespace(base=base, data=tmp_path / "data", items=items, folder=tmp_path)

    def write(out, positions, monkeypatch):
        monkeypatch.setattr(features, "SHARD", positions * 32 * 4)  # width 32, float32
        given = ("lncrna", found.data, TASK, "gate", base.folder, "cpu", 64, tmp_path / "checkpoints")
        write_features(*given, tmp_path / out)
        return tmp_path / out

    found.write = write
    return found


def alone(base, item) -> torch.Tensor:
    """The last hidden states of one example without padding, as Hugging Face gives them."""
    with torch.no_grad():
        return base.model(torch.tensor([item.ids]), output_hidden_states=True).hidden_states[-1][0]


def shards(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_every_example_has_the_states_of_the_base_alone_in_the_datasets_order(study, monkeypatch):
    folder = study.write("features", 100, monkeypatch)
    rows = open_features(folder, study.base, study.data, "gate", study.items)
    assert len(shards(folder)) > 2 and len(rows) == len(study.items)
    for row, item in zip(rows, study.items):
        torch.testing.assert_close(row.read_states(), alone(study.base, item), **CLOSE)


def test_an_encoders_states_are_those_of_both_directions(tmp_path):
    base = encoder_base(tmp_path / "base")
    transcripts(tmp_path / "data")
    items = features.encode_split(base, "lncrna", tmp_path / "data", TASK, "gate")
    found = features.compute_states(base, items, 64)
    for item, states in zip(items, found.split([item.length for item in items])):
        torch.testing.assert_close(states, alone(base, item), **CLOSE)


def test_states_keep_the_dtype_of_the_base(study):
    study.base.model.to(torch.bfloat16)
    assert features.compute_states(study.base, study.items, 64).dtype == torch.bfloat16


def test_shards_hold_consecutive_examples_up_to_their_size(study, monkeypatch):
    parts = read_json(study.write("features", 100, monkeypatch) / INDEX)["shards"]
    assert [length for part in parts for length in part] == [item.length for item in study.items]
    assert all(sum(part) <= 100 < sum(part) + after[0] for part, after in pairwise(parts))
    tiny = read_json(study.write("tiny", 1, monkeypatch) / INDEX)["shards"]
    assert [len(part) for part in tiny] == [1] * len(study.items)


def test_a_killed_job_computes_only_what_it_had_not_finished(study, monkeypatch):
    expected = study.write("whole", 100, monkeypatch)
    real, made = features.compute_states, []

    def killed(base, items, batch_tokens):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(items))
        return real(base, items, batch_tokens)

    with monkeypatch.context() as patched:
        patched.setattr(features, "compute_states", killed)
        with pytest.raises(KeyboardInterrupt):
            study.write("parts", 100, monkeypatch)
    assert not (study.folder / "parts").exists()
    [kept] = (study.folder / "checkpoints").glob("*/*")
    assert shards(kept) == ["00000.safetensors", "00001.safetensors"]
    (kept / ".00002.safetensors.part").write_bytes(b"half")  # what a kill in the midst of writing leaves
    monkeypatch.setattr(features, "compute_states", lambda *given: (made.append(len(given[1])), real(*given))[1])
    parts = study.write("parts", 100, monkeypatch)
    assert made == [len(part) for part in read_json(expected / INDEX)["shards"]]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (expected, parts)]
    assert contents[0] == contents[1]
    assert not list((study.folder / "checkpoints").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other code"])
def test_a_shard_that_is_damaged_or_of_other_code_is_computed_anew(damage, study, monkeypatch, capsys):
    expected = study.write("whole", 100, monkeypatch)
    real, made = features.compute_states, []

    def killed(base, items, batch_tokens):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(base, items, batch_tokens)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(features, "compute_states", killed)
        if damage == "other code":
            patched.setattr(features, "features_code", lambda domain: "before")
        study.write("parts", 100, monkeypatch)
    shard = next((study.folder / "checkpoints").glob("*/*/00001.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= damage == "flipped"
    shard.write_bytes(content[:500] if damage == "truncated" else content)
    shard.with_name("00099.safetensors").write_bytes(content)  # of smaller shards
    parts = study.write("parts", 100, monkeypatch)
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (expected, parts)]
    assert contents[0] == contents[1]
    anew = [line for line in capsys.readouterr().out.splitlines() if line.endswith("; it is computed anew")]
    assert len(anew) == (2 if damage == "other code" else 1) and str(shard) in anew[-1]


def test_a_batch_is_padded_with_zeros_where_its_ids_are(study, monkeypatch):
    rows = open_features(study.write("features", 100, monkeypatch), study.base, study.data, "gate", study.items)
    chosen = [7, 2, 5]
    batch = study.base.collate([study.items[i] for i in chosen])
    hidden = pad_states([rows[i] for i in chosen], "cpu")
    assert hidden.shape == (*batch["ids"].shape, 32)
    assert not hidden[batch["mask"] == 0].any() and (hidden.abs().sum(-1) > 0)[batch["mask"] == 1].all()


def test_features_of_other_data_another_base_or_another_encoding_are_refused(study, monkeypatch, tmp_path):
    folder = study.write("features", 100, monkeypatch)
    transcripts(tmp_path / "others", seed=1)
    other = SimpleNamespace(fingerprint="0" * 64, model=study.base.model)
    asked = [(study.base, tmp_path / "others", study.items), (other, study.data, study.items)]
    for base, data, items in [*asked, (study.base, study.data, study.items[::-1])]:
        with pytest.raises(InputError, match="of other data or of another base"):
            open_features(folder, base, data, "gate", items)


def test_a_base_that_hears_frames_is_refused_by_name(tmp_path):
    base = whisper_base(tmp_path / "base")
    given = ("speech", tmp_path, None, "gate", base.folder, "cpu", 64, tmp_path / "checkpoints", tmp_path / "out")
    with pytest.raises(InputError, match=r"frames and tokens \(whisper\)"):
        write_features(*given)
