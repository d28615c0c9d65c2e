"""Structures are read as the field reads them, and TM-scores agree with TM-align's published ones."""

import csv
import gzip
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from loratory.errors import InputError
from loratory.evaluation import superposition
from loratory.evaluation.structure import (
    MAX_ALIGNED,
    TmScore,
    mean_plddt,
    nearest_reference,
    read_trace,
    structure_folder,
    tm_score,
)

TOOLS = ("search", "tmtools")


def chain(length: int, seed: int) -> np.ndarray:
    """A folded-looking Cα trace: helices of 10-20 residues that turn at random, packed by a pull to the centre."""
    random = np.random.default_rng(seed)
    pieces, at = [], np.zeros(3)
    while sum(map(len, pieces)) < length:
        k = np.arange(random.integers(10, 20))
        helix = np.stack([2.3 * np.cos(1.745 * k), 2.3 * np.sin(1.745 * k), 1.5 * k], axis=1)
        piece = helix @ Rotation.random(rng=random).as_matrix()
        piece += at + random.normal(size=3) * 2 - piece[0]
        pieces.append(piece)
        at = 0.6 * piece[-1]
    return np.concatenate(pieces)[:length]


def moved(coordinates, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return coordinates @ Rotation.random(rng=random).as_matrix() + random.normal(size=3) * 50


def atom(number, name, residue, position, b=50.0, xyz=None, record="ATOM", altloc=" ", chain="A"):
    x, y, z = xyz if xyz is not None else (3.8 * position, 0.0, 0.0)
    return (
        f"{record:<6}{number:>5} {name:<4}{altloc}{residue:>3} {chain}{position:>4}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{1:6.2f}{b:6.2f}          {name.strip()[0]:>2}  "
    )


def written(path, *lines):
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def alanines(path, coordinates, b=None):
    b = np.full(len(coordinates), 50.0) if b is None else b
    lines = [atom(k + 1, " CA ", "ALA", k + 1, b[k], xyz) for k, xyz in enumerate(coordinates)]
    return written(path, *lines)


# --- reading ---


def test_systems_of_like_names_have_folders_of_their_own():
    systems = ["xlora:uniform", "xlora_uniform", "lora@protein", "lora_protein", "lora@protein-cow"]
    folders = {structure_folder(Path("structures"), seed, name) for name in systems for seed in (0, None)}
    assert len({str(folder).casefold() for folder in folders}) == 2 * len(systems)
    assert all(len(folder.parts) == 3 for folder in folders)


def test_modified_residues_and_any_location_count_and_ions_do_not(tmp_path):
    path = written(
        tmp_path / "a.pdb",
        atom(1, " N  ", "GLY", 1),
        atom(2, " CA ", "GLY", 1, 10),
        atom(3, " CA ", "SER", 2, 20, altloc="A"),
        atom(4, " CA ", "SER", 2, 90, altloc="B"),
        atom(5, " CA ", "MSE", 3, 30, record="HETATM"),
        atom(6, " CA ", "SEP", 4, 90, record="HETATM"),
        atom(7, "CA  ", " CA", 5, 90, record="HETATM"),  # calcium
        atom(8, " CA ", "TRP", 6, 90, altloc="B"),
    )
    trace = read_trace(path)
    assert trace.sequence == "GSMSW"
    assert trace.b_factors.tolist() == [10, 20, 30, 90, 90]


def test_of_a_point_mutation_the_first_of_equally_likely_residues_counts(tmp_path):
    path = written(
        tmp_path / "a.pdb",
        atom(1, " CA ", "SER", 1, 20, altloc="A"),
        atom(2, " CA ", "THR", 1, 90, altloc="B"),
        atom(3, " CA ", "GLY", 2, 40),
    )
    assert read_trace(path).sequence == "SG"


def test_several_models_warn_and_the_first_is_used(tmp_path):
    model = [atom(1, " CA ", "GLY", 1, 10), "ENDMDL"]
    path = written(tmp_path / "a.pdb", "MODEL        1", *model, "MODEL        2", *model)
    with pytest.warns(UserWarning, match=r"a\.pdb: 2 models; the first is used"):
        assert len(read_trace(path).sequence) == 1


def test_mmcif_gzip_and_missing_suffix_are_told_by_content(tmp_path):
    from Bio.PDB import MMCIFIO, PDBParser

    path = alanines(tmp_path / "a.pdb", chain(25, 0), np.linspace(1, 99, 25))
    writer = MMCIFIO()
    writer.set_structure(PDBParser(QUIET=True).get_structure("a", path))
    writer.save(str(tmp_path / "a.cif"))
    (tmp_path / "bare").write_bytes(gzip.compress((tmp_path / "a.cif").read_bytes()))
    expected = read_trace(path)
    for name in ("a.cif", "bare"):
        trace = read_trace(tmp_path / name)
        assert trace.sequence == expected.sequence
        np.testing.assert_allclose(trace.coordinates, expected.coordinates)
        np.testing.assert_allclose(trace.b_factors, expected.b_factors)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-999, 999)] * 3, st.floats(0, 100)), min_size=1, max_size=8))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    rows = np.array(rows)
    trace = read_trace(alanines(tmp_path_factory.mktemp("pdb") / "a.pdb", rows[:, :3], rows[:, 3]))
    np.testing.assert_allclose(trace.coordinates, rows[:, :3], atol=6e-4)
    np.testing.assert_allclose(trace.b_factors, rows[:, 3], atol=5.1e-3)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "a.pdb: no Cα atom"),
        (["<html>not found</html>"], "a.pdb: no Cα atom"),
        (["data_x", "loop_", "_atom_site.id", "1"], "a.pdb: malformed mmCIF file"),
        ([atom(1, " N  ", "GLY", 1)], "a.pdb: no Cα atom"),
        ([atom(1, "CA  ", " CA", 1, record="HETATM")], "a.pdb: no Cα atom"),
        ([atom(1, " CA ", "GLY", 1), atom(2, " CA ", "GLY", 1)], "a.pdb:A1: atom CA stands twice in residue GLY 1"),
        ([atom(1, " CA ", "GLY", 1).replace("3.800", "     ")], "a.pdb:1: malformed PDB file"),
        (
            [atom(1, " CA ", "GLY", 1), atom(2, " CA ", "GLY", 2, xyz=(np.nan, 0, 0))],
            "a.pdb:2: a Cα coordinate is not a number (nan 0 0)",
        ),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, lines, message):
    path = written(tmp_path / "a.pdb", *lines)
    with pytest.raises(InputError) as error:
        read_trace(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.pdb").touch()
    with pytest.raises(InputError, match=r"a\.pdb: the file is empty"):
        read_trace(tmp_path / "a.pdb")
    with pytest.raises(InputError, match=r"b\.pdb: no such file"):
        read_trace(tmp_path / "b.pdb")


# --- pLDDT ---


def test_mean_plddt_of_public_predictions(shared_data):
    folder = shared_data / "proteins" / "predicted"
    with open(folder / "plddt_reference.tsv") as table:
        rows = [row for row in csv.DictReader(table, delimiter="\t") if float(row["mean_CA_bfactor"]) > 0]
    measured = [row["file"] for row in rows if row["file"].startswith("experimental_")]
    for name in measured:
        with pytest.raises(InputError, match="the file is of an experiment: it has no pLDDT"):
            mean_plddt(folder / name)
    rows = [row for row in rows if row["file"] not in measured]
    assert len(rows) >= 10 and measured
    for row in rows:
        assert mean_plddt(folder / row["file"]) == pytest.approx(float(row["mean_CA_bfactor"]), abs=1e-4), row["file"]


def test_a_prediction_without_plddt_is_refused(shared_data):
    path = shared_data / "proteins" / "predicted" / "enqa_6KYTP_relaxed_model_1_NO_PLDDT.pdb"
    with pytest.raises(InputError, match=r"NO_PLDDT\.pdb: every Cα B-factor is 0"):
        mean_plddt(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0, 0], r"a\.pdb: every Cα B-factor is 0"),
        ([1, 1, 1], r"a\.pdb: every Cα B-factor is the same: no pLDDT was written \(1\); expected pLDDT between"),
        ([20, 20, 20], r"a\.pdb: every Cα B-factor is the same: no pLDDT was written \(20\)"),
        ([50, np.nan, 30], r"a\.pdb: Cα atoms without a B-factor \(1 of 3\)"),
        ([0.5, 0.9, 1.0], r"a\.pdb: pLDDT on the scale 0–1 \(1 at most\)"),
        ([50, 120, 30], r"a\.pdb: a Cα B-factor is no pLDDT \(120\)"),
        ([50, -3, 30], r"a\.pdb: a Cα B-factor is no pLDDT \(-3\)"),
    ],
)
def test_b_factors_that_are_no_plddt_raise_the_alarm(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        mean_plddt(alanines(tmp_path / "a.pdb", np.eye(3), values))


def test_b_factors_of_one_everywhere_bring_no_advice_to_multiply_them(tmp_path):
    for length in (1, 2, 30):
        with pytest.raises(InputError) as error:
            mean_plddt(alanines(tmp_path / "a.pdb", chain(length, 0), np.ones(length)))
        assert "multiply" not in str(error.value)
    assert mean_plddt(alanines(tmp_path / "a.pdb", chain(2, 0), np.full(2, 61.5))) == 61.5  # two may well be alike


# --- TM-score ---


def traces(folder) -> dict:
    """{file name without its endings: Cα coordinates} of the structures in a folder."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix != ".tsv"]
    return {path.name.partition(".")[0]: read_trace(path).coordinates for path in paths}


def published(shared_data):
    folder = shared_data / "proteins" / "structures" / "scope40_globins"
    rows = [line.split() for line in (folder / "tmalign_pairs.tsv").read_text().splitlines()]
    return folder, [(r[0], r[1], float(r[3]), float(r[4]), float(r[5]), int(r[8])) for r in rows]


@pytest.mark.parametrize(("tool", "tolerance", "step"), [("search", 0.005, 3), ("tmtools", 1e-4, 1)])
def test_published_tm_align_results_are_reproduced(shared_data, tool, tolerance, step):
    folder, pairs = published(shared_data)
    if tool == "tmtools":
        pytest.importorskip("tmtools")
    chains = traces(folder)
    for query, target, by_query, by_target, rmsd, aligned in pairs[::step]:
        found = tm_score(chains[query], chains[target], tool)
        assert found.norm_model == pytest.approx(by_query, abs=tolerance), (query, target)
        assert found.norm_reference == pytest.approx(by_target, abs=tolerance), (query, target)
        longer = found.norm_model if len(chains[query]) > len(chains[target]) else found.norm_reference
        assert found.norm_longer == longer
        assert found.rmsd == pytest.approx(rmsd, abs=100 * tolerance)
        assert found.aligned_length == pytest.approx(aligned, abs=1000 * tolerance)


def test_unrelated_domains_score_no_lower_than_by_tm_align(shared_data):
    pytest.importorskip("tmtools")
    chains = list(traces(shared_data / "proteins" / "structures" / "pfam_domains").values())
    for a, b in zip(chains[::2], chains[1::2]):
        ours, theirs = tm_score(a, b), tm_score(a, b, "tmtools")
        assert theirs.norm_reference < 0.6
        assert -0.03 < ours.norm_reference - theirs.norm_reference < 0.1


@pytest.mark.parametrize("tool", TOOLS)
def test_a_chain_is_itself_after_a_rigid_motion(tool):
    tools(tool)
    for seed in range(3):
        found = tm_score(chain(80, seed), moved(chain(80, seed), seed), tool)
        assert min(found.norm_model, found.norm_reference) >= 0.9999
        assert found.rmsd < 1e-3
        assert found.aligned_length == 80


@pytest.mark.parametrize("tool", TOOLS)
def test_swapping_the_chains_swaps_the_normalisations(tool):
    tools(tool)
    for lengths in ((60, 90), (70, 70)):
        a, b = chain(lengths[0], 1), chain(lengths[1], 2)
        one, two = tm_score(a, b, tool), tm_score(b, a, tool)
        assert one.norm_model == pytest.approx(two.norm_reference, abs=1e-6)
        assert one.norm_reference == pytest.approx(two.norm_model, abs=1e-6)


@pytest.mark.parametrize("tool", TOOLS)
def test_half_a_chain_scores_one_half_by_its_parent(tool):
    tools(tool)
    parent = chain(100, 3)
    found = tm_score(moved(parent[20:70], 4), parent, tool)
    assert 0.49 <= found.norm_reference <= 0.51
    assert found.norm_model >= 0.9999


def test_a_mirror_image_is_another_fold():
    a = chain(80, 5)
    assert tm_score(a * [1, 1, -1], a).norm_reference < 0.6


def test_tm_align_uses_the_same_distance_scale():
    tm_align = pytest.importorskip("tmtools").tm_align
    a, b = chain(60, 6), chain(85, 7)
    found = tm_align(a, b, "A" * len(a), "A" * len(b))
    columns = [(x != "-", y != "-") for x, y in zip(found.seqxA, found.seqyA)]
    i, j = np.cumsum(columns, axis=0).T - 1
    both = np.all(columns, axis=1)
    distance = np.linalg.norm(a[i[both]] @ found.u.T + found.t - b[j[both]], axis=1)
    for length, value in ((60, found.tm_norm_chain1), (85, found.tm_norm_chain2)):
        ours = np.sum(1 / (1 + (distance / superposition.d0(length)) ** 2)) / length
        assert value - 1e-3 < ours <= value + 1e-6  # one rotation is printed, each value may have its own
        assert superposition.tm_of_pairs(b[j[both]], a[i[both]], length) == pytest.approx(value, abs=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.floats(0.5, 8))
def test_climbing_never_loses_and_never_mirrors(seed, n, scale):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, n, 3)) * 10
    move, scores = superposition.superpose_points(a, b), []
    for _ in range(8):
        score, move = superposition.refine_pairs(a, b, move, scale, rounds=1)
        scores.append(score)
        assert np.linalg.det(move[0]) == pytest.approx(1)
    assert np.all(np.diff(scores) >= -1e-9)


def test_rmsd_is_that_of_an_independent_superposition():
    a, b = chain(50, 8), chain(50, 9)
    _, root_sum = Rotation.align_vectors(a - a.mean(0), b - b.mean(0))
    assert superposition.rmsd(a, b) == pytest.approx(root_sum / np.sqrt(50), rel=1e-6)


def test_chains_that_lie_apart_still_get_a_score():
    straight = np.arange(40)[:, None] * [100.0, 0, 0]
    found = tm_score(straight, chain(40, 1))
    assert isinstance(found, TmScore)
    assert 0 < found.norm_reference < 0.3


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("role", [0, 1])
def test_nan_is_an_error_at_once_and_not_a_hang(tool, role):
    chains = [chain(40, 1), chain(40, 2)]
    chains[role][7, 1] = np.nan
    start = time.monotonic()
    with pytest.raises(InputError, match=r"(model|reference):8: a Cα coordinate is not a number"):
        tm_score(*chains, tool)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("tool", TOOLS)
def test_short_chains_are_refused(tool):
    tools(tool)
    with pytest.raises(InputError, match=r"reference: too few residues \(19 Cα atoms\); expected at least 20"):
        tm_score(chain(40, 1), chain(19, 2), tool)
    tm_score(chain(40, 1), chain(20, 2), tool)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"model: not Cα coordinates \(shape \(40, 2\)\)"):
        tm_score(chain(40, 1)[:, :2], chain(40, 1))


def test_of_several_chains_the_first_is_scored_and_told(tmp_path):
    a = chain(30, 1)
    both = [atom(k, " CA ", "ALA", k, xyz=xyz, chain=id) for id in "AB" for k, xyz in enumerate(a, start=1)]
    path = written(tmp_path / "a.pdb", *both)
    with pytest.warns(UserWarning, match="chains A, B; the first is used"):
        assert tm_score(path, a).norm_model >= 0.9999


def tools(tool):
    if tool == "tmtools":
        pytest.importorskip("tmtools")


# --- references ---


def test_the_nearest_reference_is_found_whatever_their_order():
    model = chain(60, 1)
    references = {"part": model[:40], "whole": moved(model, 2), "other": chain(60, 3), "again": moved(model, 4)}
    references["long"] = np.concatenate([model, chain(90, 5) + 30])
    everything = {name: tm_score(model, other).norm_longer for name, other in references.items()}
    for order in (sorted(references), sorted(references, reverse=True)):
        name, score = nearest_reference(model, {name: references[name] for name in order})
        assert score.norm_longer == max(everything.values())
        assert name == min(name for name, value in everything.items() if value == score.norm_reference)


def test_of_many_references_a_similar_fold_is_found_and_little_is_lost(shared_data):
    folder = shared_data / "proteins" / "structures"
    pfam, globins = (traces(folder / name) for name in ("pfam_domains", "scope40_globins"))
    references = dict([*pfam.items(), *globins.items()][:30])
    assert len(references) > 2 * MAX_ALIGNED
    for name, model in [*globins.items()][5:6]:
        found, score = nearest_reference(moved(model, 1), {k: v for k, v in references.items() if k != name})
        assert found in globins and score.norm_longer > 0.6
    everything = [tm_score(pfam["PF00542_1CTF_A"], other).norm_longer for other in [*references.values()][10:18]]
    one = nearest_reference(pfam["PF00542_1CTF_A"], dict([*references.items()][10:18]))[1].norm_longer
    assert max(everything) - 0.07 < one <= max(everything)


def test_neither_a_short_reference_nor_a_long_one_is_the_nearest_by_a_part_alone():
    model = chain(120, 1)
    bent = moved(model, 2) + np.random.default_rng(0).normal(size=model.shape)
    references = {"part": model[30:60], "parent": np.concatenate([model, chain(300, 5) + 40]), "whole": bent}
    name, score = nearest_reference(model, references)
    part, parent = (tm_score(model, references[each]) for each in ("part", "parent"))
    assert part.norm_reference > score.norm_reference and parent.norm_model > score.norm_model
    assert name == "whole" and score.norm_longer > max(part.norm_longer, parent.norm_longer)
    assert part.norm_longer == part.norm_model and parent.norm_longer == parent.norm_reference


def test_scores_are_computed_without_torch():
    modules = "loratory.evaluation.structure, loratory.evaluation.superposition"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
