"""Folding: shapes, masks, the scale of pLDDT and the PDB round trip, on a model too small and random to be right."""

import json

import numpy as np
import pytest
import torch
from folding_model import save_folding_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loratory.bases.families import folding
from loratory.data.alphabets import RESIDUES
from loratory.errors import InputError
from loratory.evaluation.structure import mean_plddt, read_trace

SEQUENCE = RESIDUES + "GGAVLK"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folding_model(tmp_path_factory.mktemp("mini-fold"), weights="random")


@pytest.fixture(scope="module")
def model(folder):
    return folding.load_folding_model(folder, allow_random=True)


def test_a_structure_has_every_atom_of_its_residues_and_no_other(model):
    structure = folding.fold_sequence(model, SEQUENCE)
    assert structure.coordinates.shape == (len(SEQUENCE), 37, 3)
    atoms = np.isfinite(structure.coordinates).all(axis=2).sum(axis=1)
    heavy = dict(zip(RESIDUES, [5, 6, 8, 9, 11, 4, 10, 8, 9, 8, 8, 8, 7, 9, 11, 6, 7, 7, 14, 12]))
    assert atoms.tolist() == [heavy[letter] for letter in SEQUENCE]


def test_plddt_is_the_models_at_alpha_carbons_times_100(model):
    structure = folding.fold_sequence(model, SEQUENCE)
    raw = model.infer([SEQUENCE])["plddt"][0]
    assert raw.max() <= 1
    np.testing.assert_allclose(structure.plddt, 100 * raw[:, 1].numpy(), atol=1e-3)
    assert abs(structure.plddt.mean() - 100 * raw.mean()) > 0.1  # all atoms would be another number


def test_the_pdb_file_holds_what_was_predicted(model, tmp_path):
    structure = folding.fold_sequence(model, SEQUENCE)
    path = tmp_path / "a.pdb"
    path.write_text(folding.pdb_text(structure))
    trace = read_trace(path)
    assert trace.sequence == SEQUENCE
    np.testing.assert_allclose(trace.coordinates, structure.coordinates[:, 1], atol=6e-4)
    np.testing.assert_allclose(trace.b_factors, structure.plddt, atol=5.1e-3)
    assert mean_plddt(path) == pytest.approx(structure.plddt.mean(), abs=0.005)
    lines = [line for line in path.read_text().splitlines() if line.startswith("ATOM")]
    assert len(lines) == np.isfinite(structure.coordinates).all(axis=2).sum()
    assert all(float(line[60:66]) == round(structure.plddt[int(line[22:26]) - 1], 2) for line in lines)


def test_neither_chunks_nor_company_nor_repetition_change_the_result(model):
    short = folding.fold_sequence(model, SEQUENCE[:9])
    again = folding.fold_sequence(model, SEQUENCE[:9], chunk_size=4)
    assert model.trunk.chunk_size == 4
    np.testing.assert_allclose(again.coordinates, short.coordinates, atol=1e-3)
    padded = model.infer([SEQUENCE, SEQUENCE[:9]])
    np.testing.assert_allclose(100 * padded["plddt"][1, :9, 1].numpy(), short.plddt, atol=1e-3)
    np.testing.assert_array_equal(folding.fold_sequence(model, SEQUENCE[:9]).coordinates, short.coordinates)


def test_the_language_model_may_run_in_half_precision(folder):
    model = folding.load_folding_model(folder, allow_random=True)
    single = folding.fold_sequence(model, SEQUENCE)
    model.esm.half()
    np.testing.assert_allclose(folding.fold_sequence(model, SEQUENCE).plddt, single.plddt, atol=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.02, 1), min_size=1))
def test_the_scale_of_plddt_is_0_to_100(values):
    scaled = folding.percent_plddt(np.array(values))
    assert np.all((scaled >= 0) & (scaled <= 100))
    np.testing.assert_allclose(scaled / 100, values)


@pytest.mark.parametrize("values", [[50.0, 70.0], [-0.1, 0.5], [0.001, 0.009], [float("nan"), 0.5]])
def test_another_scale_than_0_to_1_stops_everything(values):
    with pytest.raises(AssertionError, match="pLDDT is not on the scale"):
        folding.percent_plddt(np.array(values))


def test_a_model_that_diverges_is_told(folder):
    model = folding.load_folding_model(folder, allow_random=True)
    with torch.no_grad():
        model.trunk.structure_module.bb_update.linear.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"folding: the model's coordinates are not finite \(ACD"):
        folding.fold_sequence(model, SEQUENCE)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "s1: empty sequence"),
        ("ACDx", "s1: not one of the 20 residues at position 4 (x)"),
        ("ACXD", "s1: not one of the 20 residues at position 3 (X)"),
        ("AC*", "s1: not one of the 20 residues at position 3 (*)"),
        ("A-C", "s1: not one of the 20 residues at position 2 (-)"),
        ("A C", "s1: not one of the 20 residues at position 2"),
        ("ACÄD", "s1: not one of the 20 residues at position 3 (Ä)"),
        ("ACDEF", "s1: the sequence is too long to fold (5); expected at most 4 residues"),
    ],
)
def test_what_cannot_be_folded_is_told_before_the_model_sees_it(sequence, message):
    with pytest.raises(InputError) as error:
        folding.check_sequence("s1", sequence, max_length=4)
    assert message in str(error.value)


def test_random_weights_are_refused_outside_tests(folder, tmp_path):
    with pytest.raises(InputError, match=r"base\.json: the weights are random"):
        folding.load_folding_model(folder)
    trained = save_folding_model(tmp_path / "trained", weights="trained")
    assert folding.load_folding_model(trained).training is False


def test_folders_that_are_no_folding_model_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        folding.load_folding_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match=r"config\.json: not a folding model"):
        folding.load_folding_model(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match="no safetensors weights"):
        folding.load_folding_model(tmp_path)


def test_a_weight_that_is_missing_is_never_made_up(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    unused = [key for key in weights if key.startswith(folding.NOT_STORED)]
    kept = {key: value for key, value in weights.items() if key not in unused}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folding.load_folding_model(tmp_path)
    del kept["lddt_head.1.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing, such as `lddt_head\.1\.weight`"):
        folding.load_folding_model(tmp_path)
