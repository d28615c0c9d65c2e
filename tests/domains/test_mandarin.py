"""Mandarin from its files to its scores: asked for in its own language, and counted in characters."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from models import entry, whisper
from transformers import PreTrainedTokenizerFast

from loratory.bases.core import load_base
from loratory.bases.options import WhisperOptions
from loratory.bases.prepare import write_manifest
from loratory.config import Evaluation, adapter_entry
from loratory.data.audio import RATE
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.speech import metrics
from loratory.domains.speech.sources import Dataset, Files, Task
from loratory.domains.speech.task import examples
from loratory.errors import InputError
from loratory.evaluation.answers import predict_examples
from loratory.training import sweep
from loratory.training.pretrain import byte_pair_tokenizer

SENTENCES = ("今天天气很好。", "我想回家", "小猫在哪里？", "老师，你好！", "我有三个苹果", "他们去学校了")
TASK = Task(normaliser="letters", max_new_tokens=24)
MANDARIN = ["<|startoftranscript|>", "<|zh|>", "<|transcribe|>", "<|notimestamps|>"]
SPECIAL = ["<|endoftext|>", *MANDARIN, "<|en|>"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A multilingual Whisper of no knowledge that is asked for Mandarin."""
    folder = tmp_path_factory.mktemp("bases") / "whisper"
    core = byte_pair_tokenizer([*SENTENCES], 400, SPECIAL, letters=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    whisper(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    given = SimpleNamespace(**vars(entry("whisper")) | {"whisper": WhisperOptions(language="zh")})
    write_manifest(folder, "whisper", given, origin="test")
    manifest = json.loads((folder / "base.json").read_text()) | {"whisper": given.whisper.model_dump()}
    (folder / "base.json").write_text(json.dumps(manifest))
    return load_base(folder)


def write_corpus(folder, sentence):
    """Twelve children who read three sentences each; `sentence(speaker, i)` is the transcript."""
    tables = {"wav.scp": [], "text": [], "utt2spk": []}
    for speaker in range(12):
        for i in range(3):
            id = f"s{speaker:02d}-{i}"
            samples = np.random.default_rng(10 * speaker + i).normal(0, 0.1, RATE // 2)
            soundfile.write(folder / f"{id}.flac", samples, RATE)
            for name, value in zip(tables, (f"{id}.flac", sentence(speaker, i), f"s{speaker:02d}")):
                tables[name].append(f"{id} {value}\n")
    for name, lines in tables.items():
        (folder / name).write_text("".join(lines))
    return Files(folders=[str(folder)], audio_root=str(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mandarin")
    files = write_corpus(folder, lambda speaker, i: SENTENCES[(speaker + i) % len(SENTENCES)])
    build_dataset("speech", files, Dataset(held_out_sentences="any"), 0, folder / "data")
    return folder / "data"


def test_a_sentence_with_blanks_between_its_words_is_the_sentence_without_them(tmp_path):
    written = ("我想回家", "我 想 回家", "我想回家。", "我 想回 家！")
    files = write_corpus(tmp_path, lambda speaker, i: written[speaker % 4] if i == 0 else f"{speaker}个{i}")
    build_dataset("speech", files, Dataset(), 0, tmp_path / "data")
    parts = {split: read_split(tmp_path / "data", split) for split in ("train", "gate", "valid", "test")}
    homes = {split for split, part in parts.items() if any("回" in record["text"] for record in part)}
    assert homes == {"test"}, "all but the most protected split lose it"
    audit_split("speech", tmp_path / "data", Dataset(), tmp_path / "audit.json")


def test_the_decoder_is_asked_for_mandarin_in_training_and_in_writing(base, data, tmp_path, monkeypatch):
    prompt = base.tokenizer.convert_tokens_to_ids(MANDARIN)
    items = sweep.encode_split(base, "speech", data, TASK, "train")
    assert all(item.ids[:4] == prompt for item in items)
    batch = base.collate(items[:2])
    assert base.tokenizer.convert_tokens_to_ids("<|en|>") not in batch["ids"]
    decode, asked = base.tokenizer.decode, []
    monkeypatch.setattr(base, "decoder_prompt", lambda own=base.decoder_prompt: asked.append(own()) or own())
    base.text(base.model, items[:2], 3)
    assert asked and all(ids == prompt for ids in asked)
    labels = [id for id, label in zip(items[0].ids, items[0].labels) if label != -100]
    assert decode(labels[:-1]) == examples(read_split(data, "train")[:1], TASK, "whisper")[0].target


def test_an_adapter_learns_mandarin_and_is_scored_in_characters(base, data, tmp_path):
    sets = {split: sweep.encode_split(base, "speech", data, TASK, split) for split in ("train", "valid")}
    recipe = {"steps": 8, "batch_tokens": 2000, "learning_rates": [0.01]}
    trial = sweep.train_one(base, sets, adapter_entry({"method": "lora", "training": recipe}), 0, 0.01, job(tmp_path))
    assert trial["curve"][-1]["loss"] < trial["curve"][0]["loss"]
    records = read_split(data, "test")
    questions = examples(records, TASK, "whisper")
    evaluation = Evaluation(batch_tokens=2000)
    rows, _ = predict_examples(base, base.model, questions, ["text"], TASK, evaluation, 0)
    columns = metrics.columns(rows, records, TASK)
    letters = [sum(map(str.isalnum, record["text"])) for record in records]
    assert columns["chars"].tolist() == columns["N"].tolist() == letters
    perfect = metrics.columns([row | {"text": row["reference"]} for row in rows], records, TASK)
    assert perfect["char_errors"].sum() == 0
    spaced = metrics.columns([row | {"text": " ".join(row["reference"])} for row in rows], records, TASK)
    assert spaced["char_errors"].sum() == 0
    wrong = metrics.columns([row | {"text": "错" + row["reference"][1:]} for row in rows], records, TASK)
    cer = next(metric for metric in metrics.METRICS if metric.name == "cer")
    assert cer.compute_value(wrong) == pytest.approx(len(rows) / sum(letters))


def job(folder):
    return sweep.Job("cpu", folder, "mandarin")


def test_one_transcript_too_long_for_the_base_is_left_out_of_training_and_named(
    base, data, tmp_path, capsys, monkeypatch
):
    """600 characters are a transcript that a dataset takes; this decoder has 64 positions."""
    records = read_split(data, "train")
    longer = [records[0] | {"text": "好" * 60}, *records[1:]]
    monkeypatch.setattr(sweep, "open_split", lambda *_: SimpleNamespace(sample=lambda limit, seed: longer))
    items = sweep.encode_split(base, "speech", data, TASK, "train")
    assert len(items) == len(records) - 1
    said = capsys.readouterr().out
    assert f"speech train, left out: {base.folder}:{records[0]['id']}: the example does not fit" in said
    longer = [record | {"text": "好" * 60} for record in records]
    with pytest.raises(InputError, match="does not fit into the base's context"):
        sweep.encode_split(base, "speech", data, TASK, "train")
