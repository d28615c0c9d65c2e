"""Folding samples: files that survive an interruption, scores that are those of the files."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folding_model import save_folding_model

from loratory.bases.families import folding
from loratory.errors import InputError
from loratory.evaluation import fold as fold_module
from loratory.evaluation.fold import SCHEMA, fold_predictions, fold_samples
from loratory.evaluation.rows import write_rows
from loratory.evaluation.structure import read_references, read_trace, tm_score

SAMPLES = [("sample-0002", "ACDEFGHIKLMNPQRSTVWYACDEF"), ("sample-0001", "MKV" * 9), ("sample-0003", "ACDEF")]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_folding_model(tmp_path_factory.mktemp("mini-fold"), weights="random")


@pytest.fixture(scope="module")
def references(model_folder):
    """Two structures of the same model: of the first sample's sequence, and of another one."""
    model = folding.load_folding_model(model_folder, allow_random=True)
    sequences = {"same": SAMPLES[0][1], "other": "GWLPE" * 8}
    return {
        name: folding.fold_sequence(model, sequence).coordinates[:, folding.CA] for name, sequence in sequences.items()
    }


@pytest.fixture(scope="module")
def done(model_folder, references, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return fold_samples(SAMPLES, references, model_folder, out, allow_random=True)


def count_folds(monkeypatch) -> list:
    folded, fold = [], folding.fold_sequence
    monkeypatch.setattr(
        folding, "fold_sequence", lambda model, sequence, chunk: folded.append(sequence) or fold(model, sequence)
    )
    return folded


def test_scores_are_those_of_the_written_files(done, references):
    table = pq.read_table(done)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["sample-0001", "sample-0002", "sample-0003"]
    sequences = dict(SAMPLES)
    for row in rows:
        trace = read_trace(done.parent / f"{row['id']}.pdb")
        assert trace.sequence == sequences[row["id"]]
        assert row["length"] == len(trace.sequence)
        assert row["plddt"] == pytest.approx(np.mean(trace.b_factors), abs=0.005)
        assert 1 < row["plddt"] <= 100
        assert (row["plddt_atoms"], row["unfolded"]) == ("ca", None)
        if len(trace.sequence) >= 20:
            scores = {name: tm_score(trace.coordinates, other) for name, other in references.items()}
            best = scores[row["reference"]]
            assert row["tm_longer"] == best.norm_longer == max(score.norm_longer for score in scores.values())
            assert (row["tm_query"], row["tm_reference"]) == (best.norm_model, best.norm_reference)
            assert row["reference_length"] == len(references[row["reference"]])
            assert (row["rmsd"], row["aligned_length"]) == (best.rmsd, best.aligned_length)
    assert rows[1]["reference"] == "same"
    assert rows[1]["tm_longer"] >= 0.9999


def test_a_sample_too_short_for_a_tm_score_has_none(done):
    row = pq.read_table(done).to_pylist()[2]
    assert row["plddt"] is not None
    names = ("reference", "reference_length", "search", "tm_longer", "tm_query", "tm_reference", "rmsd")
    assert [row[name] for name in (*names, "aligned_length")] == [None] * 8


def test_without_references_there_is_no_tm_score(model_folder, done, tmp_path):
    rows = pq.read_table(fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)).to_pylist()
    assert all(row["tm_longer"] is None for row in rows)
    assert [row["plddt"] for row in rows] == pq.read_table(done)["plddt"].to_pylist()


def test_order_of_samples_and_repetition_change_no_byte(model_folder, references, done, tmp_path):
    again = fold_samples(SAMPLES[::-1], references, model_folder, tmp_path, allow_random=True)
    for path in done.parent.iterdir():
        assert (again.parent / path.name).read_bytes() == path.read_bytes()


def test_only_what_is_missing_is_folded(model_folder, done, tmp_path, monkeypatch):
    for path in done.parent.glob("*.pdb"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sample-0003.pdb").unlink()
    folded = count_folds(monkeypatch)
    fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)
    assert folded == ["ACDEF"]
    fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)
    assert folded == ["ACDEF"]
    # the same id with another sequence is another structure
    fold_samples([("sample-0003", "ACDEG")], {}, model_folder, tmp_path, allow_random=True)
    assert folded == ["ACDEF", "ACDEG"]
    assert read_trace(tmp_path / "sample-0003.pdb").sequence == "ACDEG"
    # and so is the same sequence by another model
    other = save_folding_model(tmp_path / "other", seed=1)
    fold_samples([("sample-0003", "ACDEG")], {}, other, tmp_path)
    assert folded == ["ACDEF", "ACDEG", "ACDEG"]


def test_an_interruption_leaves_whole_files_only(model_folder, tmp_path, monkeypatch):
    text = folding.pdb_text
    monkeypatch.setattr(
        folding, "pdb_text", lambda structure: text(structure) if len(structure.sequence) == 5 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)
    assert [path.name for path in tmp_path.iterdir()] == ["sample-0003.pdb"]


def test_no_samples_give_an_empty_table(model_folder, tmp_path):
    table = pq.read_table(fold_samples([], {}, model_folder, tmp_path, allow_random=True))
    assert (table.num_rows, table.schema) == (0, SCHEMA)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", "ACD"), ("b", "AC7")], r"samples:b: not one of the 20 residues at position 3 \(7\)"),
        ([("a", "ACD"), ("b", "")], "samples:b: empty sequence"),
        ([("a", "ACD"), ("a", "ACE")], "samples:a: duplicate id"),
        ([("../a", "ACD")], r"samples: an id that cannot name a file \(\.\./a\)"),
    ],
)
def test_bad_samples_stop_before_anything_is_folded(model_folder, tmp_path, samples, message):
    with pytest.raises(InputError, match=message):
        fold_samples(samples, {}, model_folder, tmp_path, allow_random=True)
    assert not list(tmp_path.iterdir())


# --- samples that are too long ---


def limit_memory(monkeypatch, longest: int, chunk: int = 1) -> list[tuple[int, int]]:
    """Above `longest` residues memory runs out unless chunks are below `chunk`; what was tried is listed."""
    tried, infer = [], folding.EsmForProteinFolding.infer

    def limited(model, sequences):
        tried.append((len(sequences[0]), model.trunk.chunk_size))
        if len(sequences[0]) > longest and model.trunk.chunk_size >= chunk:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return infer(model, sequences)

    monkeypatch.setattr(folding.EsmForProteinFolding, "infer", limited)
    return tried


def test_a_sample_above_the_limit_has_a_row_that_says_so_and_the_others_are_folded(model_folder, done, tmp_path):
    with pytest.warns(UserWarning, match=r"1 samples are not folded, such as sample-0001: the sequence is too long"):
        scores = fold_samples(SAMPLES, {}, model_folder, tmp_path, max_length=26, allow_random=True)
    rows = pq.read_table(scores).to_pylist()
    assert [row["unfolded"] and row["unfolded"].partition(";")[0] for row in rows] == [
        "the sequence is too long to fold (27)",
        None,
        None,
    ]
    assert (rows[0]["length"], rows[0]["plddt"]) == (27, None)
    assert [row["plddt"] for row in rows[1:]] == pq.read_table(done)["plddt"].to_pylist()[1:]


def test_where_memory_does_not_suffice_smaller_chunks_are_tried(model_folder, done, tmp_path, monkeypatch):
    tried = limit_memory(monkeypatch, longest=10, chunk=16)
    fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)
    assert tried == [(5, 64), (25, 64), (25, 16), (25, 4), (27, 64), (27, 16), (27, 4)]
    plddt = [pq.read_table(path)["plddt"].to_pylist() for path in (tmp_path / "scores.parquet", done)]
    assert plddt[0] == pytest.approx(plddt[1], abs=1e-2)


def test_a_sample_that_no_memory_suffices_for_is_left_out_and_tried_again(model_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        tried = limit_memory(patch, longest=10)
        with pytest.warns(
            UserWarning, match="2 samples are not folded, such as sample-0001: the sequence is too long"
        ):
            scores = fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)
        assert tried == [(5, 64), (25, 64), (25, 16), (25, 4), (25, 1)], "a longer one is not tried"
    said = {row["id"]: row["unfolded"] for row in pq.read_table(scores).to_pylist()}
    assert said["sample-0002"].startswith("out of memory, however small the chunks (25 residues)")
    assert said["sample-0001"].startswith("the sequence is too long to fold (27); expected at most 24 residues")
    assert said["sample-0003"] is None
    folded = count_folds(monkeypatch)
    fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)
    assert sorted(map(len, folded)) == [25, 27]
    assert not any(pq.read_table(scores)["unfolded"].to_pylist())


def test_other_faults_of_the_model_are_not_taken_for_a_lack_of_memory(model_folder, tmp_path, monkeypatch):
    def broken(model, sequences):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(folding.EsmForProteinFolding, "infer", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        fold_samples(SAMPLES, {}, model_folder, tmp_path, allow_random=True)
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried …")
    assert folding.is_out_of_memory(cpu) and folding.is_out_of_memory(MemoryError())


def test_random_weights_are_refused_even_when_nothing_is_left_to_fold(model_folder, done):
    with pytest.raises(InputError, match="the weights are random"):
        fold_samples(SAMPLES, {}, model_folder, done.parent)


# --- predictions of all systems ---


def predictions(path, **systems):
    rows = [
        {"split": "sample", "system": system, "kind": "base", "id": f"sample-{i:04d}", "group": "g", "text": text}
        for system, texts in systems.items()
        for i, text in enumerate(texts, start=1)
    ]
    write_rows(path, [*rows, {"split": "test", "system": "base", "kind": "base", "id": "r1", "nll": 1.0}])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folding_model(tmp_path_factory.mktemp("base"))


def test_every_system_is_folded_as_far_as_the_limit_goes(folder, tmp_path):
    wrote = {"base": ["ACDEF", "MKV", "ACD>", "MKVW>", "GGAA>"], "lora@protein": ["AC>"]}
    seeds = {seed: predictions(tmp_path / f"{seed}.parquet", **wrote) for seed in (0, 1)}
    natural = predictions(tmp_path / "baselines.parquet", natural=["MKTAYIAKQR>"])
    fold_predictions("protein", seeds, natural, None, 2, folder, tmp_path / "out", tmp_path / "begun")
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [(row["seed"], row["system"], row["id"][-1], row["length"]) for row in rows] == [
        *[(seed, *rest) for seed in (0, 1) for rest in (("base", "3", 3), ("base", "4", 4), ("lora@protein", "1", 2))],
        (None, "natural", "1", 10),
    ]
    assert all(0 < row["plddt"] <= 100 and row["tm_longer"] is None for row in rows)


def test_a_job_that_was_stopped_goes_on_from_what_it_had_folded_and_leaves_nothing_half_done(
    folder, tmp_path, monkeypatch
):
    written = predictions(tmp_path / "0.parquet", base=["ACD>", "MKVW>", "GGAAG>"])
    natural, out, begun = predictions(tmp_path / "none.parquet"), tmp_path / "out", tmp_path / "begun"
    arguments = ("protein", {0: written}, natural, None, None, folder, out, begun)
    fold, folded = fold_module.folding.fold_sequence, []

    def fold_two(model, sequence, chunk_size):
        if len(folded) == 2:
            raise KeyboardInterrupt
        folded.append(sequence)
        return fold(model, sequence, chunk_size)

    monkeypatch.setattr(fold_module.folding, "fold_sequence", fold_two)
    with pytest.raises(KeyboardInterrupt):
        fold_predictions(*arguments)
    assert not out.exists() and len([*begun.rglob("*.pdb")]) == 2
    folded.clear()
    stale = begun / "seed7" / "removed" / "s.pdb"  # of a seed that the study has no longer
    stale.parent.mkdir(parents=True)
    stale.touch()
    fold_predictions(*arguments)
    assert folded == ["GGAAG"] and len([*out.rglob("*.pdb")]) == 3 and not begun.exists()


@pytest.fixture
def foldseek(tmp_path, monkeypatch):
    """A program of that name on the path, which writes the given hits and lists what it was called with."""

    def install(hits: str) -> Path:
        program, calls = tmp_path / "bin" / "foldseek", tmp_path / "calls.txt"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncat {tmp_path}/hits > "$4"\n')
        program.chmod(0o755)
        (tmp_path / "hits").write_text(hits)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return calls

    return install


def test_where_foldseek_is_installed_it_says_which_reference_is_the_nearest(folder, tmp_path, foldseek):
    model, sequence = folding.load_folding_model(folder), SAMPLES[0][1]
    backbone = folding.fold_sequence(model, sequence).coordinates[:, [0, 1, 2, 4]].astype(np.float32)
    records = [
        {"id": id, "sequence": letters, "backbone": points.ravel()}
        for id, letters, points in (("same", sequence, backbone), ("turned", sequence[::-1], backbone[::-1]))
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "test.parquet")
    written = predictions(tmp_path / "0.parquet", base=[f"{sequence}>", f"{sequence[1:]}>"])
    none = predictions(tmp_path / "baselines.parquet")
    calls = foldseek("0.pdb_A\t1.pdb\t0.5\t0.4\n")  # of the first sample alone, and not the nearest
    fold_predictions(
        "protein", {0: written}, none, tmp_path / "test.parquet", None, folder, tmp_path / "out", tmp_path / "begun"
    )
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [(row["reference"], row["search"]) for row in rows] == [("turned", "foldseek"), ("same", "coarse")]
    points = {"turned": backbone[::-1, 1], "same": backbone[:, 1]}
    for row, name in zip(rows, ("turned", "same")):
        own = tm_score(tmp_path / "out" / "seed0" / "base" / f"{row['id']}.pdb", points[name].astype(float))
        assert row["tm_longer"] == own.norm_longer, "the number is that of the own alignment"
    assert calls.read_text().startswith("easy-search ") and calls.read_text().count("\n") == 1


def test_references_are_the_resolved_chains_long_enough(tmp_path):
    rng = np.random.default_rng(0)
    chains = {"long": rng.normal(size=(25, 4, 3)), "short": rng.normal(size=(19, 4, 3)), "holes": np.ones((25, 4, 3))}
    chains["long"][4, 1] = np.nan
    chains["holes"][:6, 1, 2] = np.nan
    records = [
        {
            "id": id,
            "sequence": "ACDEFGHIKLMNPQRSTVWYACDEF"[: len(points)],
            "backbone": points.ravel().astype(np.float32),
        }
        for id, points in chains.items()
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "test.parquet")
    found = read_references(tmp_path / "test.parquet")
    assert [*found] == ["long"]
    np.testing.assert_allclose(found["long"].backbone, np.delete(chains["long"], 4, axis=0), rtol=1e-6)
    assert found["long"].sequence == "ACDEGHIKLMNPQRSTVWYACDEF"


def test_samples_are_compared_with_the_given_chains(folder, tmp_path):
    model, sequence = folding.load_folding_model(folder), SAMPLES[0][1]
    backbone = folding.fold_sequence(model, sequence).coordinates[:, [0, 1, 2, 4]].astype(np.float32)
    record = {"id": "same", "sequence": sequence, "backbone": backbone.ravel()}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "test.parquet")
    written = predictions(tmp_path / "0.parquet", base=[f"{sequence}>"])
    none = predictions(tmp_path / "baselines.parquet")
    fold_predictions(
        "protein", {0: written}, none, tmp_path / "test.parquet", None, folder, tmp_path / "out", tmp_path / "begun"
    )
    [row] = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert (row["reference"], row["length"]) == ("same", len(sequence)) and row["tm_longer"] > 0.999
    assert row["search"] == "coarse"
