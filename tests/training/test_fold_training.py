"""Training a folding base: the losses say what they should, the head learns from chains that are not learnt from."""

import os
import signal

import numpy as np
import pytest
import torch
from biotite.structure import Atom, array
from biotite.structure import lddt as biotite_lddt
from folding_model import TRUNK

from loratory.bases.families.folding import fold_sequence, load_folding_model
from loratory.config import BaseEntry
from loratory.data.alphabets import RESIDUES
from loratory.domains.structure.simulate import build_backbone
from loratory.errors import InputError
from loratory.training import folding
from loratory.training.fit import TrainingStopped
from loratory.training.job import Job
from loratory.training.pretrain import pretrain_base

TINY = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "esmfold_config": {"fp16_esm": False, "lddt_head_hid_dim": 16, "trunk": TRUNK | {"max_recycles": 2}},
}
BASINS = {residue: (-57, -47) if residue in "AEHKLMQRDSGN" else (-120, 130) for residue in RESIDUES}


def record(id: str, sequence: str, origin: str = "simulated", missing=()) -> dict:
    atoms = build_backbone(np.array([BASINS[residue] for residue in sequence], float)).astype(np.float32)
    atoms[list(missing)] = np.nan
    return {"id": id, "group": id, "sequence": sequence, "backbone": atoms.ravel().tolist(), "origin": origin}


def sequences(n: int, shortest: int = 12, longest: int = 20) -> list[str]:
    random = np.random.default_rng(5)
    return ["".join(random.choice(list(RESIDUES), random.integers(shortest, longest + 1))) for _ in range(n)]


@pytest.fixture(scope="module")
def records() -> list[dict]:
    drawn = sequences(20)
    return [
        record(f"c{i}", drawn[i], ["experiment", "simulated"][i % 2], missing=[3] if i == 4 else ()) for i in range(20)
    ]


ENTRY = BaseEntry(
    family="folding",
    pretrain={
        "domains": ["structure"],
        "architecture": TINY,
        "seed": 3,
        "training": {"steps": 4, "learning_rate": 0.003, "batch_tokens": 500, "weight_decay": 0.01, "save_every": 2},
    },
)


@pytest.fixture
def model():
    """With weights that move atoms about: a new model leaves them all at one place."""
    torch.manual_seed(1)
    model = folding.new_model(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def chains(records) -> dict:
    """A padded batch of three chains of unequal lengths, one residue unresolved."""
    read = [folding.read_chain(records[i]) for i in (0, 4, 7)]
    batch = folding.collate_chains([(chain.residues, chain.backbone) for chain in read], "cpu")
    return batch | {"passes": 2, "clamped": torch.tensor([True, False, True])}


def moved(points: torch.Tensor, mirrored: bool = False) -> torch.Tensor:
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    rotation *= torch.linalg.det(rotation) * (-1 if mirrored else 1)
    return points @ rotation.T + torch.tensor([3.0, -7.0, 11.0])


def error(points: torch.Tensor, batch: dict) -> torch.Tensor:
    """FAPE of a backbone (B, L, 4, 3) against the batch's."""
    known, true = batch["known"], batch["backbone"]
    limit = torch.full((len(known),), torch.inf)
    alphas = points[:, :, folding.CA], true[:, :, folding.CA]
    return folding.frame_aligned_error(
        folding.backbone_frames(points), alphas[0], folding.backbone_frames(true), alphas[1], known, known, limit
    )


def test_fape_is_zero_for_the_truth_wherever_it_lies_and_not_for_its_mirror_image(chains):
    true = chains["backbone"]
    assert error(true, chains).max() <= 0.01 / folding.CLAMP + 1e-6
    assert error(moved(true), chains).max() < 0.0011
    assert error(moved(true, mirrored=True), chains).min() > 0.1


def test_fape_ends_at_the_limit_where_it_is_clamped(chains):
    known, true = chains["known"], folding.backbone_frames(chains["backbone"])
    far = chains["backbone"][:, :, folding.CA] * 100
    found = [
        folding.frame_aligned_error(true, far, true, far / 100, known, known, torch.full((3,), limit))
        for limit in (10.0, torch.inf)
    ]
    assert found[0].max() <= 1 and found[1].min() > 10


def test_unresolved_residues_and_padding_do_not_count(chains, model):
    """Whatever stands there, and whatever is predicted there."""
    found = folding.predict_structure(model, chains["residues"], chains["mask"], 1)
    other = {name: value.detach().clone() for name, value in found.items()}
    lost = ~chains["known"]
    assert lost[1, 3] and lost.sum() > 1
    other["positions"][:, lost] = 50.0
    other["sidechain_frames"][:, lost] = 1.0
    other["angles"][:, lost] = 0.5
    other["unnormalized_angles"][:, ~chains["mask"].bool()] = 9.0
    untrue = chains | {"backbone": chains["backbone"].masked_fill(lost[..., None, None], 7.0)}
    for loss in (folding.fape_loss, folding.local_loss, folding.bond_loss, folding.torsion_loss):
        torch.testing.assert_close(loss(other, untrue), loss(found, chains))
    torch.testing.assert_close(
        folding.distogram_loss(model, found, untrue), folding.distogram_loss(model, found, chains)
    )


@pytest.mark.parametrize("noise", [0.0, 0.7, 3.0])
def test_lddt_is_that_of_biotite(noise):
    random = np.random.default_rng(4)
    true = build_backbone(random.uniform(-150, -30, (60, 2)))[:, 1]
    points = true + noise * random.standard_normal(true.shape)
    atoms = array(
        [Atom(xyz, res_id=i + 1, res_name="GLY", atom_name="CA", chain_of="A") for i, xyz in enumerate(true)]
    )
    expected = biotite_lddt(atoms, points.astype(np.float32), aggregation="residue", inclusion_radius=15)
    known = torch.ones(60, dtype=torch.bool)
    found = folding.lddt_scores(*(torch.tensor(x, dtype=torch.float32) for x in (points, true)), known)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_lddt_leaves_out_unknown_residues_and_is_nan_where_nothing_is_near():
    true = torch.tensor([[0.0, 0, 0], [5, 0, 0], [8, 0, 0], [99, 0, 0]])
    known = torch.tensor([True, True, False, True])
    score = folding.lddt_scores(true + torch.tensor([[0.0], [0], [9], [0]]), true, known)
    assert score[:2].tolist() == [1, 1] and score[2:].isnan().all()


def test_torsions_are_those_that_build_the_backbone(chains):
    """ψ by the library's own placement of O, φ and ω by the angles that the chain was built from."""
    found, known = folding.torsion_angles(chains["backbone"], chains["known"])
    assert known[0, :, 2].equal(chains["known"][0]) and not known[:, 0, :2].any() and not known[1, 3:5, :2].any()
    degrees = torch.rad2deg(torch.atan2(*found.unbind(-1)))
    expected = [BASINS[folding.residue_constants.restypes[i]] for i in chains["residues"][0]]
    length = int(chains["mask"][0].sum())
    phi, psi = torch.tensor(expected, dtype=torch.float32)[:length].T
    torch.testing.assert_close(degrees[0, 1:length, 1], phi[1:], atol=0.1, rtol=0)
    torch.testing.assert_close(degrees[0, :length, 2], psi, atol=0.1, rtol=0)
    torch.testing.assert_close(degrees[0, 1:length, 0].abs(), torch.full((length - 1,), 180.0), atol=0.1, rtol=0)


def test_true_frames_and_torsions_give_the_true_backbone_in_the_library(chains, model):
    """Training and folding mean the same by a frame and by an angle."""
    from transformers.models.esm.openfold_utils import Rigid, Rotation

    rotations, origins = folding.backbone_frames(chains["backbone"])
    angles, _ = folding.torsion_angles(chains["backbone"], chains["known"])
    angles = torch.nn.functional.pad(angles, (0, 0, 0, 4))
    module, residues = model.trunk.structure_module, chains["residues"]
    placed = module.torsion_angles_to_frames(Rigid(Rotation(rot_mats=rotations), origins), angles, residues)
    atoms = module.frames_and_literature_positions_to_atom14_pos(placed, residues)[:, :, :4]
    gap = (atoms - chains["backbone"]).norm(dim=-1)[chains["known"]]
    assert gap[:, :3].max() < 0.1 and gap[:, 3].max() < 0.25  # bond lengths and angles differ a little


def test_the_forward_pass_is_the_librarys_own(chains, model):
    residues, mask = chains["residues"], chains["mask"]
    own, library = folding.predict_structure(model, residues, mask, 2), model(residues, mask)
    torch.testing.assert_close(own["positions"], library["positions"])
    torch.testing.assert_close(own["states"], library["states"])


def test_a_padded_batch_is_its_chains_alone(chains, model):
    together = folding.predict_structure(model, chains["residues"], chains["mask"], 2)
    for i, length in enumerate(chains["mask"].sum(1).tolist()):
        alone = folding.predict_structure(
            model, chains["residues"][i : i + 1, :length], chains["mask"][i : i + 1, :length], 2
        )
        torch.testing.assert_close(
            together["positions"][:, i, :length], alone["positions"][:, 0], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(together["s_z"][i, :length, :length], alone["s_z"][0], atol=1e-4, rtol=1e-4)


def test_confidence_is_trained_where_plddt_is_read(chains, model):
    """A head that is sure of one bin: the loss is 0 when it is the true one, and the folder's pLDDT says so."""
    chains = chains | {"passes": 1}
    head = model.lddt_head[-1]
    found = folding.predict_structure(model, chains["residues"], chains["mask"], 1)
    score = folding.lddt_scores(found["positions"][-1, :, :, 1], chains["backbone"][:, :, 1], chains["known"])
    first = score[0, 0]
    chains["known"][1:] = False
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias.view(37, 50)[folding.CA, int(first * 50)] = 100.0
    with torch.no_grad():
        total, n, _ = folding.confidence_loss(model, chains)
    right = (score[0] * 50).long() == int(first * 50)
    assert n == int(score[0].isfinite().sum())
    assert float(total) == pytest.approx(100.0 * int((~right)[score[0].isfinite()].sum()), rel=1e-3)
    structure = fold_sequence(model.eval(), "ACDE")
    assert structure.plddt == pytest.approx(100 * (int(first * 50) + 0.5) / 50, abs=0.1)


def test_every_part_learns_from_its_own_loss_only(chains, model):
    """The language model learns along; the head learns from judged chains, and these teach nothing else."""

    def touched(loss) -> set[str]:
        model.zero_grad()
        loss(model, chains)[0].backward()
        return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    assert touched(folding.confidence_loss) == {"lddt_head"}
    learnt = touched(folding.folding_loss)
    assert {"esm", "esm_s_mlp", "trunk", "distogram_head"} <= learnt and "lddt_head" not in learnt


def test_gradients_are_finite_where_residues_have_no_truth(chains, model):
    chains["known"][2] = False
    folding.folding_loss(model, chains)[0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_placing_the_backbone_alone_places_it_as_always(chains, model):
    def place():
        found = folding.predict_structure(model, chains["residues"], chains["mask"], 2)
        return found["positions"][..., :3, :], found["sidechain_frames"][..., 0, :, :]

    whole = place()
    with folding.backbone_only(model):
        torch.testing.assert_close(place(), whole)
    torch.testing.assert_close(place(), whole)
    assert folding.predict_structure(model, chains["residues"], chains["mask"], 1)["positions"].shape[-2] == 14


def test_a_stored_model_says_of_every_atom_what_it_says_of_alpha_carbons(chains, model):
    before = model(chains["residues"], chains["mask"])["plddt"][:, :, folding.CA]
    after = folding.finalise_model(model)(chains["residues"], chains["mask"])
    torch.testing.assert_close(after["plddt"], before[..., None].expand_as(after["plddt"]))
    assert not after["ptm_logits"].any() and not after["lm_logits"].any()


def test_judged_chains_are_of_other_groups_than_those_learnt_from(records):
    chains = [folding.read_chain(record) for record in records]
    taught, judged = folding.split_by_group(chains, 3)
    names = [{chain.group for chains in part.values() for chain in chains} for part in (taught, judged)]
    assert names[0] and names[1] and not names[0] & names[1] and len(names[0] | names[1]) == len(records)
    with pytest.raises(InputError, match="1 groups cannot fill 2 splits"):
        folding.split_by_group(chains[:1], 3)


def test_origins_are_drawn_alike_and_cut_at_random_places(records):
    chains = [folding.read_chain(record) for record in records]
    origins = {"rare": chains[:1], "often": chains[1:]}
    drawn = folding.draw_chains(origins, 6, 8, np.random.default_rng(1))
    assert sum(len(part[0]) == 8 for part in drawn) == 6
    rare = [residues for residues, _ in drawn if "".join(map(str, residues.tolist())) in joined(chains[0].residues)]
    assert len(rare) == 3
    again = folding.draw_chains(origins, 6, 8, np.random.default_rng(1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(drawn, again))


def joined(residues: torch.Tensor) -> str:
    return "".join(map(str, residues.tolist()))


def test_a_base_is_stored_and_folds_as_it_was(records, tmp_path):
    """The folder is one that folding bases are loaded from; its tokenizer reads sequences as folding does."""
    pretrain_base("mini", ENTRY, {"structure": records}, None, Job("cpu", tmp_path / "c", "mini"), tmp_path / "mini")
    model, tokenizer, curve = folding.train_folding(records, ENTRY.pretrain, Job("cpu", tmp_path / "d", "mini"))
    assert len(curve) == 4
    loaded, sequence = load_folding_model(tmp_path / "mini"), records[1]["sequence"]
    np.testing.assert_array_equal(
        fold_sequence(loaded, sequence).coordinates, fold_sequence(model, sequence).coordinates
    )
    ids = tokenizer([sequence], add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert torch.equal(model(ids)["positions"], model.infer([sequence])["positions"])


def test_the_losses_fall(records, tmp_path):
    training = ENTRY.pretrain.training.model_copy(update={"steps": 40, "learning_rate": 0.01, "save_every": 0})
    longer = ENTRY.pretrain.model_copy(update={"training": training})
    _, _, curve = folding.train_folding(records, longer, Job("cpu", tmp_path, "mini"))
    start, end = (np.mean([point["loss"] for point in part]) for part in (curve[:5], curve[-5:]))
    assert end < 0.85 * start


def test_training_goes_on_bit_for_bit_after_sigterm(records, tmp_path, monkeypatch):
    def run(folder):
        return folding.train_folding(records, ENTRY.pretrain, Job("cpu", folder, "mini"))

    whole, _, curve = run(tmp_path / "whole")
    plain, calls = folding.draw_chains, []

    def draw(*args):
        calls.append(args)
        if len(calls) == 6:  # two calls a step: in the third step
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped):
        patch.setattr(folding, "draw_chains", draw)
        run(tmp_path / "parts")
    resumed, _, again = run(tmp_path / "parts")
    assert [point["loss"] for point in again] == [point["loss"] for point in curve]
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))
