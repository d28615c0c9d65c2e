"""Chains with a backbone: what is kept of a file, where a chain is cut, and what simulated ones look like."""

import gzip
import json
import random
import re
import warnings
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio.Data import IUPACData
from Bio.PDB import MMCIFIO, PDBParser
from biotite.structure import AtomArray, dihedral_backbone
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from loratory.data import mmseqs
from loratory.data.alphabets import RESIDUES
from loratory.data.fasta import read_fasta
from loratory.data.ledger import Ledger
from loratory.data.sampling import HashSample
from loratory.data.structures import unflatten_backbone
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.fetch import fetch_source, open_source
from loratory.domains.protein import simulate as protein
from loratory.domains.protein.simulate import POPULATIONS
from loratory.domains.structure import build, simulate, task
from loratory.domains.structure.sources import FAMILIES, Dataset, Files, Simulation, Task
from loratory.errors import InputError
from loratory.evaluation.structure import tm_score

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"
LINE = np.arange(200)[:, None] * [3.8, 0, 0]  # Cα atoms at the distance of neighbours
THREE = {letter: name.upper() for letter, name in IUPACData.protein_letters_1to3.items()}


def atoms(length: int) -> np.ndarray:
    """N, Cα, C and O a little apart, (length, 4, 3)."""
    return LINE[:length, None] + np.array([[-1, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 2]], float)


def entry(name: str, sequence: str = SEQUENCE, points=None, **more) -> dict:
    points = atoms(len(sequence)) if points is None else points
    coords = {atom: np.asarray(points)[:, i].tolist() for i, atom in enumerate(("N", "CA", "C", "O"))}
    return {"name": name, "seq": sequence, "coords": coords} | more


def jsonl(folder, *entries) -> Files:
    path = folder / "chain_set.jsonl"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in entries))
    return Files(chains=[str(path)])


def read(files, on_error="fail", **options) -> tuple[list[dict], Ledger]:
    dataset, ledger = Dataset(on_error=on_error, **options), Ledger(on_error)
    sample = HashSample(None, 0, build.DISTINCT, ledger)
    for record in build.read(files, dataset, ledger):
        sample.add_record(record)
    return [*sample.kept_records()], ledger


def pdb(path, sequence, points, chain="A", numbers=None, record="ATOM", names=None):
    lines = []
    for position, letter in enumerate(sequence):
        for atom, point in zip(("N", "CA", "C", "O"), points[position]):
            if np.isfinite(point).all():
                name = names[position] if names else THREE[letter]
                number = numbers[position] if numbers else position + 1
                kind = "HETATM" if name == "MSE" else record
                x, y, z = point
                lines.append(
                    f"{kind:<6}{len(lines) + 1:>5}  {atom:<3} {name} {chain}{number:>4}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           {atom[0]}"
                )
    with open(path, "a") as stream:
        stream.write("\n".join([*lines, "TER", ""]))
    return path


# formats


def test_every_format_gives_the_same_record(tmp_path):
    points = atoms(len(SEQUENCE))
    pdb(tmp_path / "a.pdb", SEQUENCE, points)
    (tmp_path / "b.ent.gz").write_bytes(gzip.compress((tmp_path / "a.pdb").read_bytes()))
    (tmp_path / "d1abca_").write_bytes((tmp_path / "a.pdb").read_bytes())
    (tmp_path / "c.jsonl").write_text(json.dumps(entry("c.A")) + "\n")
    listed = [{"name": "l", "seq": SEQUENCE, "coords": points.tolist()}]
    (tmp_path / "ts.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))
    writer = MMCIFIO()
    writer.set_structure(PDBParser(QUIET=True).get_structure("a", tmp_path / "a.pdb"))
    writer.save(str(tmp_path / "e.cif"))
    ids = {
        "a.pdb": "a.A",
        "b.ent.gz": "b.A",
        "d1abca_": "d1abca_.A",
        "c.jsonl": "c.A",
        "ts.json.gz": "l",
        "e.cif": "e.A",
    }
    for name, id in ids.items():
        [record], _ = read(Files(chains=[str(tmp_path / name)]))
        origin = "experiment" if "json" in name else "unknown"  # the data sets in JSON are of experiments
        assert (record["id"], record["sequence"], record["origin"]) == (id, SEQUENCE, origin)
        np.testing.assert_allclose(unflatten_backbone(record["backbone"]), points, atol=6e-4)


def test_a_folder_stands_for_its_structure_files(tmp_path):
    (tmp_path / "below").mkdir()
    for number, name in enumerate(
        ("a.pdb", "below/b.cif.gz", "d1abca_", "x.jsonl", "notes.txt", "pairs.tsv", ".hidden")
    ):
        (tmp_path / name).write_text(str(number))
    found = Files(chains=[str(tmp_path), str(tmp_path / "none.pdb")]).file_paths()
    assert found == [str(tmp_path / name) for name in ("a.pdb", "below/b.cif.gz", "d1abca_", "x.jsonl", "none.pdb")]


def test_each_chain_of_the_first_model_is_a_record_and_ligands_are_none(tmp_path):
    path = tmp_path / "two.pdb"
    names = [THREE[letter] for letter in SEQUENCE]
    names[5] = "MSE"
    sequence = SEQUENCE[:5] + "M" + SEQUENCE[6:]
    path.write_text("MODEL        1\n")
    pdb(path, SEQUENCE, atoms(len(SEQUENCE)), names=names)
    pdb(path, SEQUENCE[::-1], atoms(len(SEQUENCE)), chain="B")
    pdb(path, "G", atoms(1) + 90, chain="C", record="HETATM")
    with open(path, "a") as stream:
        stream.write("ENDMDL\nMODEL        2\n")
    pdb(path, SEQUENCE, atoms(len(SEQUENCE)) + 5)
    with pytest.warns(UserWarning, match="2 models; the first is used"):
        records, ledger = read(Files(chains=[str(path)]))
    assert [(r["id"], r["sequence"]) for r in records] == [("two.A", sequence), ("two.B", SEQUENCE[::-1])]
    assert ledger.n_in == 2


def test_chains_of_a_file_that_does_not_say_where_they_come_from_have_the_origin_of_the_source(tmp_path):
    pdb(tmp_path / "a.pdb", SEQUENCE, atoms(len(SEQUENCE)))
    (tmp_path / "b.pdb").write_text("EXPDTA    SOLUTION NMR\n")
    pdb(tmp_path / "b.pdb", SEQUENCE[::-1], atoms(len(SEQUENCE)))
    for origin in ("experiment", "predicted", None):
        kept, _ = read(Files(chains=[str(tmp_path)], origin=origin))
        assert {r["id"]: r["origin"] for r in kept} == {"a.A": origin or "unknown", "b.A": "experiment"}
    [record], _ = read(jsonl(tmp_path, entry("c")).model_copy(update={"origin": "predicted"}))
    assert record["origin"] == "predicted"


def test_two_chains_that_only_ter_parts_are_two_records(tmp_path):
    path = pdb(tmp_path / "two.pdb", SEQUENCE, atoms(len(SEQUENCE)), chain=" ")
    pdb(path, SEQUENCE[::-1], atoms(len(SEQUENCE)), chain=" ")
    kept, ledger = read(Files(chains=[str(path)]))
    assert [(r["id"], r["sequence"]) for r in kept] == [("two", SEQUENCE), ("two._2", SEQUENCE[::-1])]
    assert ledger.n_in == 2 and not ledger.rows


def test_a_modified_residue_within_a_chain_does_not_cut_it(tmp_path):
    names = [THREE[letter] for letter in SEQUENCE]
    names[30], names[40] = "SEP", "SEC"
    path = pdb(tmp_path / "a.pdb", SEQUENCE, atoms(len(SEQUENCE)), names=names, record="HETATM")
    expected = "".join({30: "S", 40: "C"}.get(i, letter) for i, letter in enumerate(SEQUENCE))
    [record], ledger = read(Files(chains=[str(path)]))
    assert record["sequence"] == expected and not ledger.rows
    kept, ledger = read(Files(chains=[str(path)]), rare_residues="drop")
    assert not kept and ledger.reason_counts() == {"rare_residue": 1}


def test_a_file_that_is_damaged_is_named_or_skipped(tmp_path):
    pdb(tmp_path / "a.pdb", SEQUENCE, atoms(len(SEQUENCE)))
    (tmp_path / "b.pdb.gz").write_bytes(gzip.compress((tmp_path / "a.pdb").read_bytes())[:-30])
    with pytest.raises(InputError, match=r"b\.pdb\.gz:1: the compressed file ends early"):
        read(Files(chains=[str(tmp_path)]))
    kept, ledger = read(Files(chains=[str(tmp_path)]), on_error="skip")
    assert len(kept) == 1 and ledger.reason_counts() == {"damaged": 1}


# gaps


def test_unresolved_residues_of_a_known_sequence_stay_as_nan(tmp_path):
    points = atoms(len(SEQUENCE))
    points[:3] = points[30:32] = np.nan
    points[50, 3] = np.nan
    [record], ledger = read(jsonl(tmp_path, entry("a", points=points)))
    np.testing.assert_array_equal(np.isnan(unflatten_backbone(record["backbone"])), np.isnan(points))
    assert record["sequence"] == SEQUENCE and not ledger.rows
    kept, ledger = read(jsonl(tmp_path, entry("a", points=points)), resolved=0.95)
    assert not kept and [row[3] for row in ledger.rows] == ["unresolved"]
    assert ledger.rows[0][4] == f"91% of {len(SEQUENCE)} residues, expected at least 95%"


def test_null_is_unresolved_too(tmp_path):
    record = entry("a")
    record["coords"]["O"][7] = [None, None, None]
    [kept], _ = read(jsonl(tmp_path, record))
    assert np.isnan(unflatten_backbone(kept["backbone"])[7, 3]).all() and np.isnan(kept["backbone"]).sum() == 3


@pytest.mark.parametrize("gap", [0, 1, 4])
def test_a_chain_is_cut_where_residues_are_missing_from_the_file(tmp_path, gap):
    rest = atoms(len(SEQUENCE))
    numbers = list(range(1, len(SEQUENCE) + 1))
    rest[55:] += [3.8 * gap, 0, 0]
    files = Files(chains=[str(pdb(tmp_path / "a.pdb", SEQUENCE, rest, numbers=numbers))])
    [record], ledger = read(files)
    cut = 55 if gap else len(SEQUENCE)
    assert record["sequence"] == SEQUENCE[:cut] and len(record["backbone"]) == 12 * cut
    assert [row[3] for row in ledger.rows] == ["chain_break"] * bool(gap)
    assert ledger.n_in == 1 + len(ledger.rows)


def test_a_gap_in_the_coordinates_must_be_bridged_by_the_residues_in_it(tmp_path):
    points = atoms(len(SEQUENCE))
    points[52:55] = np.nan
    assert read(jsonl(tmp_path, entry("a", points=points)))[0][0]["length"] == len(SEQUENCE)
    points[55:] += [4, 0, 0]  # 19.2 Å over 4 steps
    [record], ledger = read(jsonl(tmp_path, entry("a", points=points)))
    assert record["length"] == 52
    assert ledger.rows[0][4] == f"residues 53 to {len(SEQUENCE)}, beyond a gap; kept: 1 to 52"


# errors


@pytest.mark.parametrize(
    "line, message, reason",
    [
        ('{"name": "b", "seq": ', "not JSON", "json"),
        ("[1]", "keys are missing (name, seq, coords)", "keys"),
        ({"name": "b", "seq": SEQUENCE}, "keys are missing (coords); expected name, seq, coords", "keys"),
        (entry("b") | {"seq": 5}, "`seq` is no text (5)", "keys"),
        (entry(" "), "`name` is no text", "keys"),
        (entry("b", origin="dream"), "unknown origin (dream); expected experiment or predicted", "keys"),
        (entry("b") | {"seq": SEQUENCE[:-1]}, "sequence and coordinates do not fit ((70, 4, 3))", "coordinates"),
        (
            entry("b") | {"coords": {"N": [], "CA": []}},
            "coordinates that cannot be read ('C')",
            "coordinates",
        ),
        (entry("b") | {"coords": [[1, 2], 3]}, "coordinates that cannot be read", "coordinates"),
        (entry("b", points=atoms(len(SEQUENCE)) + np.inf), "an infinite coordinate", "coordinates"),
        (entry("b", SEQUENCE[:-1] + "7"), "'7' at position 70 of the sequence is no residue", "residue"),
    ],
)
def test_a_malformed_record_is_named_or_skipped(tmp_path, line, message, reason):
    line = re.sub("-?Infinity", "1e999", json.dumps(line)) if isinstance(line, dict) else line
    files = jsonl(tmp_path, entry("a"), line)
    with pytest.raises(InputError, match="^" + re.escape(f"{files.chains[0]}:2: {message}")):
        read(files)
    kept, ledger = read(files, on_error="skip")
    assert [r["id"] for r in kept] == ["a"] and ledger.reason_counts() == {reason: 1} and ledger.n_malformed == 1


def test_a_malformed_file_is_named_or_skipped(tmp_path):
    pdb(tmp_path / "a.pdb", SEQUENCE, atoms(len(SEQUENCE)))
    (tmp_path / "b.pdb").write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"b\.pdb:1: no Cα atom"):
        read(Files(chains=[str(tmp_path)]))
    kept, ledger = read(Files(chains=[str(tmp_path)]), on_error="skip")
    assert len(kept) == 1 and ledger.rows == [(str(tmp_path / "b.pdb"), "1", "", "no_atoms", ledger.rows[0][4])]


def test_a_missing_location_is_never_skipped(tmp_path):
    with pytest.raises(InputError, match=r"none\.pdb: no such file or folder"):
        read(Files(chains=[str(tmp_path / "none.pdb")]), on_error="skip")


def test_lengths_and_letters_follow_the_policy_of_proteins(tmp_path):
    long, odd = SEQUENCE + SEQUENCE[:5], SEQUENCE[:-1] + "X"
    entries = [entry("a", long.lower()), entry("b", SEQUENCE[:49]), entry("c", odd), entry("d", SEQUENCE[:-1] + "U")]
    kept, ledger = read(jsonl(tmp_path, *entries), max_length=len(SEQUENCE))
    assert [r["sequence"] for r in kept] == [SEQUENCE[:-1] + "C"]
    assert ledger.reason_counts() == {"ambiguous_residue": 1, "too_long": 1, "too_short": 1}


def test_each_sequence_stays_once_and_each_id(tmp_path):
    pdb(tmp_path / "c.pdb", SEQUENCE[::-1], atoms(len(SEQUENCE)))
    given = jsonl(tmp_path, entry("b"), entry("a"), entry("c.A", SEQUENCE[::-1]))
    kept, ledger = read(Files(chains=[*given.chains, str(tmp_path / "c.pdb")]))
    assert [r["id"] for r in kept] == ["a", "c.A"]
    assert sorted((row[2], row[3]) for row in ledger.rows) == [
        ("b", "duplicate_sequence"),
        ("c.A", "duplicate_sequence"),
    ]
    for second in (SEQUENCE, SEQUENCE[::-1]):
        with pytest.raises(InputError, match=r":2: duplicate id, first seen at \S+:1 \(a\)"):
            read(jsonl(tmp_path, entry("a"), entry("a", second)))


chains = st.tuples(
    st.text(RESIDUES + "XU*7a", min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.sampled_from([np.nan, 40.0])), max_size=4),
)


@settings(max_examples=80, deadline=None)
@example([("AAAAAAAAAAA*7", [(12, 40.0)])])
@given(st.lists(chains, min_size=1, max_size=6))
def test_every_chain_and_every_piece_is_kept_or_accounted_for(tmp_path_factory, given_chains):
    entries = []
    for number, (sequence, faults) in enumerate(given_chains):
        points = atoms(len(sequence))
        for position, fault in faults:
            points[position:] += 0 if np.isnan(fault) else fault
            points[position : position + 1] += fault * 0
        entries.append(entry(f"r{number}", sequence, points))
    files = jsonl(tmp_path_factory.getbasetemp(), *entries)
    kept, ledger = read(files, on_error="skip", min_length=5, max_length=25, resolved=0.5)
    assert ledger.n_in == len(kept) + len(ledger.rows)
    assert ledger.n_in == len(entries) + ledger.reason_counts().get("chain_break", 0)
    assert len({r["sequence"] for r in kept}) == len(kept)
    for record in kept:
        points = unflatten_backbone(record["backbone"])
        assert set(record["sequence"]) <= set(RESIDUES)
        assert 5 <= record["length"] == len(record["sequence"]) == len(points) <= 25
        assert np.isfinite(points).all(axis=(1, 2)).mean() >= 0.5
        assert not build.chain_breaks(points)


# real files


def test_real_structures_of_every_format_become_records(shared_data):
    folder = shared_data / "proteins" / "structures"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several models the first is used
        kept, ledger = read(Files(chains=[str(folder)]), on_error="skip")
    assert ledger.n_in == len(kept) + len(ledger.rows)
    ledger.check_counts("structure", len(kept), 0.01)
    assert len(kept) == 131 and sum(r["length"] for r in kept) == 24135
    assert {r["origin"] for r in kept} == {"experiment", "unknown"}
    ids = {r["id"] for r in kept}
    assert {"1aki.A", "1cs6.A", "3pivA", "d1mbaa_.A", "PF00313_3I2Z_A.A"} <= ids
    for record in kept:  # peptide bonds are what they are everywhere
        points = unflatten_backbone(record["backbone"])
        bond = np.linalg.norm(points[1:, 0] - points[:-1, 2], axis=1)
        assert 1.2 < np.nanmedian(bond) < 1.45, record["id"]


# datasets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Given and simulated chains together, from the source to the splits."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = random.Random(5)
    given = [entry(f"x{i:02d}", "".join(rng.choices(RESIDUES, k=60))) for i in range(30)]
    source = jsonl(folder, *given).model_copy(update={"simulated": Simulation(n=60, families=30)})
    fetch_source("structure", source, "general", 3, folder / "raw")
    build_dataset("structure", open_source("structure", folder / "raw"), Dataset(), 1, folder / "data")
    return folder


def test_given_and_simulated_chains_stand_together_and_are_told_apart(dataset):
    card = json.loads((dataset / "data" / "card.json").read_text())
    assert card["n_in"] == 90 == card["n_kept"] + sum(card["n_rejected"].values())
    assert card["summary"]["origins"]["experiment"] == 30
    assert card["summary"]["origins"]["simulated"] > 40
    assert sum(card["summary"]["origins"].values()) == card["n_kept"]
    for split in ("train", "test"):
        for record in read_split(dataset / "data", split):
            assert record["origin"] == ("simulated" if record["id"].startswith("SIM") else "experiment")
            assert len(record["backbone"]) == 12 * record["length"]


def test_the_splits_do_not_leak(dataset, tmp_path):
    audit_split("structure", dataset / "data", Dataset(), tmp_path / "audit.json")
    counts = json.loads((tmp_path / "audit.json").read_text())["counts"]
    assert {"clusters_in_two_splits", "resembles_test"} <= counts.keys() and set(counts.values()) == {0}


def test_backbones_are_stored_as_single_precision_lists(dataset):
    table = pq.read_table(dataset / "data" / "train.parquet")
    assert table.schema.field("backbone").type == pa.list_(pa.float32())


def test_the_same_source_gives_the_same_bytes(dataset, tmp_path):
    build_dataset("structure", open_source("structure", dataset / "raw"), Dataset(), 1, tmp_path / "data")
    for path in (dataset / "data").iterdir():
        assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes()


# task


def test_a_folding_base_is_asked_for_the_fold_of_the_sequence():
    assert FAMILIES == {"folding": ("structure",)}
    [example] = task.examples([{"id": "a", "group": "g", "sequence": SEQUENCE}], Task(), "folding")
    assert (example.id, example.group, example.prompt, example.target) == ("a", "g", SEQUENCE, "")


@pytest.mark.parametrize("options", [{"min_length": 60, "max_length": 50}, {"resolved": 1.1}, {"unknown": 1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        Dataset(**options)


# simulation


def simulated(folder, population="domain", seed=0, **options) -> list[dict]:
    options = {"n": 30, "families": 15} | options
    [path] = simulate.simulate(Simulation(**options), population, seed, folder)["chains"]
    return [json.loads(line) for line in gzip.open(folder / path)]


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path):
    for name, population, seed in (("a", "domain", 0), ("b", "domain", 0), ("c", "domain", 1), ("d", "general", 0)):
        (tmp_path / name).mkdir()
        simulate.simulate(Simulation(n=6, families=3), population, seed, tmp_path / name)
    a, b, c, d = ((tmp_path / name / "chain_set.jsonl.gz").read_bytes() for name in "abcd")
    assert a == b and a != c
    sequences = [{json.loads(line)["seq"] for line in gzip.decompress(raw).splitlines()} for raw in (a, c, d)]
    assert not set.intersection(*sequences[:2]) and not sequences[0] & sequences[2]


def test_no_family_is_that_of_the_protein_domain(tmp_path):
    protein.simulate(Simulation(n=40, families=40), "domain", 0, tmp_path)
    proteins = {id: s.decode() for _, id, _, s in read_fasta(tmp_path / "uniref50.fasta.gz", Ledger())}
    ours = {f"structure {r['name']}": r["seq"] for r in simulated(tmp_path, n=40, families=40)}
    assert not mmseqs.search_sequences(ours, proteins, mmseqs.Relation(0.5, 0.8))


def test_simulated_chains_are_read_whole(tmp_path):
    records = simulated(tmp_path)
    kept, ledger = read(Files(chains=[str(tmp_path / "chain_set.jsonl.gz")]), max_length=200)
    assert len(records) == 30 == len(kept) and not ledger.rows
    assert {r["origin"] for r in kept} == {"simulated"}
    assert all(50 <= r["length"] <= 160 and not np.isnan(r["backbone"]).any() for r in kept)


def test_simulated_geometry_is_that_of_proteins(tmp_path):
    for record in simulated(tmp_path):
        n, ca, c, o = (np.array(record["coords"][name]) for name in ("N", "CA", "C", "O"))
        for start, end, length in ((n, ca, 1.458), (ca, c, 1.525), (c[:-1], n[1:], 1.329), (c, o, 1.231)):
            np.testing.assert_allclose(np.linalg.norm(end - start, axis=1), length, atol=3e-3)
        np.testing.assert_allclose(np.linalg.norm(np.diff(ca, axis=0), axis=1), 3.80, atol=0.01)
        # O lies in the plane of the peptide bond, away from the next Cα
        np.testing.assert_allclose(np.linalg.norm(o[:-1] - n[1:], axis=1), 2.25, atol=0.01)
        assert (np.linalg.norm(o[:-1] - ca[1:], axis=1) < 2.9).all()


def test_torsions_are_those_asked_for():
    asked = np.random.default_rng(0).uniform(-179, 179, size=(40, 2))
    chain = AtomArray(120)
    chain.coord = simulate.build_backbone(asked)[:, :3].reshape(-1, 3)
    chain.atom_name[:], chain.res_id[:] = ["N", "CA", "C"] * 40, np.repeat(np.arange(40), 3)
    chain.res_name[:], chain.chain_id[:] = "ALA", "A"
    phi, psi, omega = (np.degrees(angle) for angle in dihedral_backbone(chain))
    np.testing.assert_allclose(phi[1:], asked[1:, 0], atol=1e-2)
    np.testing.assert_allclose(psi[:-1], asked[:-1, 1], atol=1e-2)
    np.testing.assert_allclose(np.abs(omega[:-1]), 180, atol=1e-2)


def test_a_helix_rises_and_bonds_as_helices_do():
    helix, strand = (
        simulate.build_backbone(np.full((30, 2), basin, float)) for basin in (simulate.HELIX, simulate.STRAND)
    )
    assert np.linalg.norm(helix[18, 1] - helix[0, 1]) / 18 == pytest.approx(1.5, abs=0.1)
    assert np.linalg.norm(helix[4:, 0] - helix[:-4, 3], axis=1) == pytest.approx(3.0, abs=0.2)  # the hydrogen bond
    assert np.linalg.norm(strand[18, 1] - strand[0, 1]) / 18 == pytest.approx(3.35, abs=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_any_torsions_make_a_connected_chain(seed, length):
    points = simulate.build_backbone(np.random.default_rng(seed).uniform(-180, 180, size=(length, 2)))
    assert points.shape == (length, 4, 3) and np.isfinite(points).all()
    assert not build.chain_breaks(points)


def test_relatives_are_more_alike_than_strangers():
    rng = random.Random(0)
    folds = [
        [
            atoms[:, 1]
            for _, atoms in simulate.family_chains(Simulation(n=2, families=1, max_length=80), population, rng)
        ]
        for population in [POPULATIONS["general"]] * 6
    ]
    relatives = [tm_score(*pair).norm_reference for pair in folds]
    strangers = [tm_score(a[0], b[0]).norm_reference for a, b in pairwise(folds)]
    assert np.median(relatives) > np.median(strangers) + 0.05


def test_chains_do_not_cross_themselves(tmp_path):
    for record in simulated(tmp_path, n=40, families=40, min_length=150, max_length=200):
        points = np.stack([record["coords"][name] for name in ("N", "CA", "C", "O")], axis=1)
        assert not simulate.count_crossings(points)
    knot = np.repeat(LINE[:10, None], 4, axis=1)
    knot[7] = knot[1] + 1
    assert simulate.count_crossings(knot) == 2
