"""Teaching a small ESMFold to fold and to know how well it does, from sequences and backbones alone.

Losses: AlphaFold 2 (Jumper et al. 2021, doi:10.1038/s41586-021-03819-2, supplement 1.9): backbone FAPE, torsions,
distogram, confidence; AlphaFold 3 (Abramson et al. 2024, doi:10.1038/s41586-024-07487-w): smooth lDDT.
Atoms are N, Cα, C, O, coordinates in Å; B chains of at most L residues make a batch.

Chains are few, so those learnt from are soon memorised. The confidence head therefore learns from others: the
chains of a fifth of the groups never enter the losses of the structure, only that of the confidence.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from transformers import EsmConfig, EsmForProteinFolding, EsmTokenizer
from transformers.models.esm.configuration_esm import get_default_vocab_list
from transformers.models.esm.modeling_esmfold import EsmFoldingTrunk
from transformers.models.esm.openfold_utils import residue_constants

from loratory.data import splits
from loratory.data.batching import split_batch
from loratory.data.structures import unflatten_backbone
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.job import Job

N, CA, C, O = range(4)  # noqa: E741 a backbone atom's place, here and among a residue's 14 and 37
CROP, LONGEST = 64, 128  # residues of a chain that is learnt from, and of one that is judged
JUDGED = 0.2  # share of the chains that only the confidence head learns from
CLAMP, CLAMPED = 10.0, 0.9  # Å at which FAPE ends, and the share of chains where it does
DISTANCES = 2.3125, 21.6875, 64  # Å of the first and the last edge of the distogram's bins, and their number
WEIGHTS = {"fape": 1.0, "local": 1.0, "torsion": 0.5, "distogram": 0.3, "bond": 0.02}  # more of bond drowns the rest
PEPTIDE, SLACK, LONGEST_PEPTIDE = 1.33, 0.17, 2.5  # Å from C to the next N: ideal, tolerated, still a bond
INCLUSION, TOLERANCES = 15.0, (0.5, 1.0, 2.0, 4.0)  # Å of lDDT (Mariani 2013, doi:10.1093/bioinformatics/btt473)


Frames = tuple[torch.Tensor, torch.Tensor]  # rotations (…, 3, 3) and origins (…, 3)


@dataclass(frozen=True)
class Chain:
    """A chain of L residues.

    Attributes:
        group: chains of one group are all learnt from or all judged.
        origin: "experiment" or "simulated".
        residues: (L,) in AlphaFold's order.
        backbone: (L, 4, 3), NaN where unresolved.
    """

    group: str
    origin: str
    residues: torch.Tensor
    backbone: torch.Tensor


Origins = dict[str, list[Chain]]  # chains by where they come from


def read_chain(record: dict) -> Chain:
    """A record of the domain `structure`."""
    residues = [residue_constants.restype_order[letter] for letter in record["sequence"]]
    backbone = torch.from_numpy(unflatten_backbone(record["backbone"]))
    return Chain(record["group"], record["origin"], torch.tensor(residues), backbone)


def train_folding(
    records: Iterable[dict], pretrain: Any, job: Job
) -> tuple[EsmForProteinFolding, EsmTokenizer, list[dict]]:
    """Trains an `EsmForProteinFolding` from nothing.

    Args:
        records: of the domain `structure`, in at least two groups.
        pretrain: `config.Pretrain`; its architecture holds fields of `EsmConfig`.

    Returns:
        The model, its tokenizer and the learning curve.
    """
    seed, training = pretrain.seed, pretrain.training
    taught, judged = split_by_group([read_chain(record) for record in records], seed)
    torch.manual_seed(seed)
    model = new_model(pretrain.architecture)
    model.to(job.device).train()  # type: ignore[arg-type]  # transformers' stub of `to`
    config: Any = model.config
    passes: int = config.esmfold_config.trunk.max_recycles
    each = max(1, training.batch_tokens // CROP)

    def micro_batches(step: int) -> list[MicroBatch]:
        return [micro for number in training.batch_numbers(step) for micro in draw_batches(number)]

    def draw_batches(number: int) -> list[MicroBatch]:
        random = np.random.default_rng([seed, number])
        learnt = collate_chains(draw_chains(taught, each, CROP, random), job.device)
        learnt["passes"] = int(random.integers(1, passes + 1))
        learnt["clamped"] = torch.from_numpy(random.random(len(learnt["mask"])) < CLAMPED).to(job.device)
        watched = collate_chains(draw_chains(judged, max(1, each // 4), LONGEST, random), job.device)
        micro = training.micro_batch_tokens
        return [
            *(MicroBatch("fold", part, len(part["mask"])) for part in split_chains(learnt, CROP, micro)),
            *(
                MicroBatch("confidence", part | {"passes": passes}, count_scored(part))
                for part in split_chains(watched, LONGEST, micro)
            ),
        ]

    def loss(micro: MicroBatch) -> Loss:
        return {"fold": folding_loss, "confidence": confidence_loss}[micro.task](model, micro.batch)

    parameters = dict(model.named_parameters())
    with backbone_only(model):
        curve = train_model(
            parameters,
            micro_batches,
            loss,
            training,
            seed,
            *job.folder_and_title,
            made_with=job.made_with,
        )
    return finalise_model(model), new_tokenizer(), curve


def split_by_group(chains: list[Chain], seed: int) -> tuple[Origins, Origins]:
    """Chains to learn from and chains to judge, no group in both, each as {origin: chains}.

    Raises:
        InputError: all chains are of one group.
    """
    shares = {"train": 1 - JUDGED, "gate": JUDGED, "valid": 0, "test": 0}
    homes = splits.assign_splits([chain.group for chain in chains], shares, seed, "chains of the folding base")
    parts: dict[str, Origins] = {"train": {}, "gate": {}}
    for chain, home in zip(chains, homes):
        parts[home].setdefault(chain.origin, []).append(chain)
    return parts["train"], parts["gate"]


def draw_chains(
    origins: Origins, n: int, longest: int, random: np.random.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`n` chains, as many of each origin as of any other, cut to `longest` residues at a random place."""
    drawn = []
    for origin, share in zip(sorted(origins), np.array_split(range(max(n, len(origins))), len(origins))):
        chains = origins[origin]
        for index in random.choice(len(chains), len(share), replace=len(chains) < len(share)):
            chain = chains[index]
            start = random.integers(max(1, len(chain.residues) - longest + 1))
            part = slice(start, start + longest)
            drawn.append((chain.residues[part], chain.backbone[part]))
    return drawn


def split_chains(batch: dict[str, Any], longest: int, budget: int | None) -> list[dict[str, Any]]:
    """A batch in parts of at most so many residues; None: in one part.

    Args:
        longest: residues of a chain.
    """
    parts = split_batch([longest] * len(batch["mask"]), budget)
    return [
        {name: value[part] if torch.is_tensor(value) else value for name, value in batch.items()} for part in parts
    ]


def collate_chains(chains: list[tuple[torch.Tensor, torch.Tensor]], device: str) -> dict[str, Any]:
    """Padded on the right: residues, mask and known (B, L), backbone (B, L, 4, 3) with 0 where unknown."""
    pad = torch.nn.utils.rnn.pad_sequence
    residues = pad([residues for residues, _ in chains], batch_first=True)
    mask = pad([torch.ones_like(residues) for residues, _ in chains], batch_first=True)
    backbone = pad([backbone for _, backbone in chains], batch_first=True)
    known = (mask > 0) & backbone.isfinite().flatten(2).all(-1)
    backbone = backbone.masked_fill(~known[..., None, None], 0)
    parts = {"residues": residues, "mask": mask, "known": known, "backbone": backbone}
    return {name: tensor.to(device) for name, tensor in parts.items()}


def new_model(architecture: dict) -> EsmForProteinFolding:
    """With random weights; what the architecture leaves open is the library's default."""
    vocabulary = get_default_vocab_list()
    ids = {"pad_token_id": vocabulary.index("<pad>"), "mask_token_id": vocabulary.index("<mask>")}
    fixed = {"is_folding_model": True, "vocab_list": vocabulary, "vocab_size": len(vocabulary), **ids}
    model = EsmForProteinFolding(EsmConfig(**architecture, **fixed)).float()
    initialise_weights(model)
    model.esm.requires_grad_(True)  # the library means it to be trained before
    model.trunk.set_chunk_size(None)
    return model


@torch.no_grad()
def initialise_weights(model: EsmForProteinFolding) -> None:
    """Weights as in AlphaFold 2 (1.11.4); the library's own are those of BERT, too small to learn from."""
    gains = {"relu": 2, "final": 0, "gating": 0}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            kind = getattr(module, "init", "default")
            module.weight.normal_(std=(gains.get(kind, 1) / module.in_features) ** 0.5)
            if module.bias is not None:
                module.bias.fill_(kind == "gating")
        elif isinstance(module, torch.nn.Embedding):
            module.weight.normal_()
    blocks: Any = model.trunk.blocks
    for block in blocks:  # every block starts as the identity
        last = block.seq_attention.o_proj, block.sequence_to_pair.o_proj, block.mlp_seq.mlp[-2], block.mlp_pair.mlp[-2]
        for layer in last:
            layer.weight.zero_()
    model.trunk.structure_module.ipa.head_weights.fill_(math.log(math.e - 1))  # softplus of it is 1


def new_tokenizer() -> EsmTokenizer:
    """From letters to the numbers that `EsmForProteinFolding.forward` reads, those of AlphaFold."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        special = ["<pad>", "<unk>", "<cls>", "<eos>", "<mask>"]
        path.write_text("\n".join([*residue_constants.restypes_with_x, *special]))
        return EsmTokenizer(str(path))


def finalise_model(model: EsmForProteinFolding) -> EsmForProteinFolding:
    """The model as it is stored, with outputs that were not trained made equal or 0."""
    with torch.no_grad():
        weight, bias = (p.view(37, 50, -1) for p in model.lddt_head[-1].parameters())
        for part in (weight, bias):  # every atom of a residue is as sure as its Cα
            part.copy_(part[CA : CA + 1].expand_as(part).clone())
        for head in (model.ptm_head, model.lm_head):  # not trained: 0 says that it knows nothing
            head.weight.zero_()
            head.bias.zero_()
    return model.eval()


@contextmanager
def backbone_only(model: EsmForProteinFolding) -> Iterator[None]:
    """Places N, Cα and C alone for a while: no loss looks at the other atoms, which cost most of the time."""
    module: Any = model.trunk.structure_module
    ideal = torch.tensor(residue_constants.restype_atom14_rigid_group_positions[:, :3], device=model.device)
    module.torsion_angles_to_frames = lambda backbone, angles, residues: backbone[..., None]
    module.frames_and_literature_positions_to_atom14_pos = lambda backbone, residues: backbone.apply(ideal[residues])
    try:
        yield
    finally:
        del module.torsion_angles_to_frames, module.frames_and_literature_positions_to_atom14_pos


def predict_structure(
    model: EsmForProteinFolding, residues: torch.Tensor, mask: torch.Tensor, passes: int
) -> dict[str, torch.Tensor]:
    """What `EsmForProteinFolding.forward` returns, with gradients to its language model and without what is not read.

    Args:
        residues, mask: (B, L). passes: through the trunk; the library's `max_recycles` counts them alike.
    """
    states = model.compute_language_model_representations(model.af2_idx_to_esm_idx(residues, mask))
    mixed = (model.esm_s_combine.softmax(0).unsqueeze(0) @ states).squeeze(2)
    single = model.esm_s_mlp(mixed) + model.embedding(residues)
    config: Any = model.config
    pair = single.new_zeros(*residues.shape, residues.shape[1], config.esmfold_config.trunk.pairwise_state_dim)
    positions = torch.arange(residues.shape[1], device=residues.device).expand_as(residues)
    return model.trunk(single, pair, residues, positions, mask, no_recycles=passes - 1)


def folding_loss(model: EsmForProteinFolding, batch: dict[str, Any]) -> Loss:
    """Summed over chains."""
    found = predict_structure(model, batch["residues"], batch["mask"], batch["passes"])
    terms = {
        "fape": fape_loss(found, batch),
        "local": local_loss(found, batch),
        "torsion": torsion_loss(found, batch),
        "distogram": distogram_loss(model, found, batch),
        "bond": bond_loss(found, batch),
    }
    total = cast("torch.Tensor", sum(weight * terms[name] for name, weight in WEIGHTS.items()))
    return Loss(total.sum(), len(batch["mask"]))


def fape_loss(found: dict, batch: dict) -> torch.Tensor:
    """(B,): the mean of Cα over all structure blocks and of N, Cα and C after the last."""
    known, true = batch["known"], backbone_frames(batch["backbone"])
    limit = torch.where(batch["clamped"], CLAMP, torch.inf)
    placed = found["sidechain_frames"][..., 0, :, :]  # of the backbone, by block: [blocks, B, L, 4, 4]
    placed = placed[..., :3, :3], placed[..., :3, 3]
    last = tuple(part[-1] for part in placed)
    alphas = frame_aligned_error(
        placed, found["positions"][..., CA, :], true, batch["backbone"][:, :, CA], known, known, limit
    )
    atoms, points = (x[:, :, :3].flatten(1, 2) for x in (found["positions"][-1], batch["backbone"]))
    return (
        alphas.mean(0) + frame_aligned_error(last, atoms, true, points, known, known.repeat_interleave(3, 1), limit)
    ) / 2


def backbone_frames(backbone: torch.Tensor) -> Frames:
    """Rotations (…, 3, 3) and origins (…, 3) of residues: Cα at 0, C on x, N in the xy plane (algorithm 21)."""
    origin = backbone[..., CA, :]
    x = F.normalize(backbone[..., C, :] - origin, dim=-1)
    aside = backbone[..., N, :] - origin
    y = F.normalize(aside - (aside * x).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), origin


def frame_aligned_error(
    placed: Frames,
    points: torch.Tensor,
    true_placed: Frames,
    true_points: torch.Tensor,
    frames_known: torch.Tensor,
    points_known: torch.Tensor,
    limit: torch.Tensor,
) -> torch.Tensor:
    """Frame-aligned point error over 10 Å (algorithm 28), shape (…, B): every point in the coordinates of every frame.

    Args:
        placed: rotations (…, B, F, 3, 3) and origins (…, B, F, 3). points: (…, B, P, 3). limit: (B,) in Å.
    """
    gap = points_in_frames(placed, points) - points_in_frames(true_placed, true_points)
    # AlphaFold's small number: without it the root's gradient would be infinite where a point is right.
    error = (gap.square().sum(-1) + 1e-4).sqrt().minimum(limit[:, None, None])
    counted = frames_known[:, :, None] & points_known[:, None, :]
    return masked_mean(error, counted, (-1, -2)) / CLAMP


def points_in_frames(placed: Frames, points: torch.Tensor) -> torch.Tensor:
    """(…, F, P, 3): points in the coordinates of each frame."""
    rotations, origins = placed
    apart = points[..., None, :, :] - origins[..., :, None, :]
    return apart @ rotations


def masked_mean(values: torch.Tensor, counted: torch.Tensor, axes: int | tuple[int, ...]) -> torch.Tensor:
    """Over those that count; 0 where none does."""
    return (values * counted).sum(axes) / counted.sum(axes).clamp(min=1)


def local_loss(found: dict, batch: dict) -> torch.Tensor:
    """(B,): 1 - lDDT-Cα after the last block, its steps smoothed (AlphaFold 3, algorithm 27).

    FAPE alone needs many times the steps to leave the start, where all atoms are at one place.
    """
    score = lddt_scores(
        found["positions"][-1, :, :, CA], batch["backbone"][:, :, CA], batch["known"], smooth_tolerance_share
    )
    scored = score.isfinite()
    return 1 - masked_mean(score.nan_to_num(0), scored, -1)


def torsion_loss(found: dict, batch: dict) -> torch.Tensor:
    """(B,): ω, φ and ψ on the unit circle over all structure blocks (algorithm 27)."""
    true, known = torsion_angles(batch["backbone"], batch["known"])
    raw, unit = found["unnormalized_angles"][..., :3, :], found["angles"][..., :3, :]
    far = masked_mean((unit - true).square().sum(-1), known, (-1, -2))
    length = masked_mean((raw.norm(dim=-1) - 1).abs(), batch["mask"][..., None].bool().expand_as(known), (-1, -2))
    return (far + 0.02 * length).mean(0)


def torsion_angles(backbone: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine and cosine (B, L, 3, 2) of ω, φ (before the residue) and ψ, and which of them are known (B, L, 3)."""
    before = backbone.roll(1, 1)
    n, a, c, o = backbone.unbind(-2)
    angles = [
        dihedral_angle(before[..., CA, :], before[..., C, :], n, a),
        dihedral_angle(before[..., C, :], n, a, c),
        -dihedral_angle(n, a, c, o),  # the next N lies opposite to O
    ]
    joined = F.pad(bond_mask(backbone, known), (1, 0))
    return torch.stack(angles, dim=2), torch.stack([joined, joined, known], dim=2)


def bond_mask(backbone: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(B, L - 1): both residues are known and the chain goes on from one to the other."""
    gap = (backbone[:, 1:, N] - backbone[:, :-1, C]).norm(dim=-1)
    return known[:, 1:] & known[:, :-1] & (gap < LONGEST_PEPTIDE)


def dihedral_angle(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Sine and cosine (…, 2) of the angle about b–c."""
    axis = F.normalize(c - b, dim=-1)
    u, v = (side - (side * axis).sum(-1, keepdim=True) * axis for side in (a - b, d - c))
    sine = (torch.linalg.cross(axis, u) * v).sum(-1)
    return F.normalize(torch.stack([sine, (u * v).sum(-1)], dim=-1), dim=-1)


def distogram_loss(model: EsmForProteinFolding, found: dict, batch: dict) -> torch.Tensor:
    """(B,): cross entropy of the distances between (virtual) Cβ atoms."""
    logits = model.distogram_head(found["s_z"])
    logits = (logits + logits.transpose(1, 2)) / 2
    bins = EsmFoldingTrunk.distogram(batch["backbone"][:, :, :3], *DISTANCES)
    nll = F.cross_entropy(logits.permute(0, 3, 1, 2), bins, reduction="none")
    known = batch["known"]
    return masked_mean(nll, known[:, :, None] & known[:, None, :], (-1, -2))


def bond_loss(found: dict, batch: dict) -> torch.Tensor:
    """(B,): Å by which peptide bonds are too long or too short."""
    placed = found["positions"][-1]
    length = (placed[:, 1:, N] - placed[:, :-1, C]).square().sum(-1).add(1e-6).sqrt()  # of no infinite gradient at 0
    return masked_mean(F.relu((length - PEPTIDE).abs() - SLACK), bond_mask(batch["backbone"], batch["known"]), -1)


def confidence_loss(model: EsmForProteinFolding, batch: dict[str, Any]) -> Loss:
    """Cross entropy of each residue's own lDDT-Cα, summed over residues; only the head gets gradients."""
    with evaluation_mode(model):
        found = predict_structure(model, batch["residues"], batch["mask"], batch["passes"])
        score = lddt_scores(found["positions"][-1, :, :, CA], batch["backbone"][:, :, CA], batch["known"])
    scored = score.isfinite()
    logits = confidence_logits(model, found["states"][-1])[scored]
    bins = (score[scored] * logits.shape[-1]).long().clamp(max=logits.shape[-1] - 1)
    return Loss(F.cross_entropy(logits, bins, reduction="sum"), len(bins))


def count_scored(batch: dict[str, Any]) -> int:
    """Residues that have another one near in truth, which alone decides over which ones `confidence_loss` sums."""
    alphas = batch["backbone"][:, :, CA]
    return int(lddt_scores(alphas, alphas, batch["known"]).isfinite().sum())


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout and gradients for a while."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def confidence_logits(model: EsmForProteinFolding, states: torch.Tensor) -> torch.Tensor:
    """Logits (B, L, bins) of lDDT at Cα, equal bins from 0 to 1; the library's pLDDT is their mean there."""
    return model.lddt_head(states).unflatten(-1, (-1, model.lddt_bins))[:, :, CA]


def tolerance_share(gap: torch.Tensor) -> torch.Tensor:
    """Share of lDDT's tolerances within which a distance (Å off by `gap`) is kept."""
    kept = cast("torch.Tensor", sum((gap <= tolerance).float() for tolerance in TOLERANCES))
    return kept / len(TOLERANCES)


def smooth_tolerance_share(gap: torch.Tensor) -> torch.Tensor:
    """As `tolerance_share`, but with a slope to learn from."""
    kept = cast("torch.Tensor", sum(torch.sigmoid(tolerance - gap) for tolerance in TOLERANCES))
    return kept / len(TOLERANCES)


def lddt_scores(
    points: torch.Tensor,
    true: torch.Tensor,
    known: torch.Tensor,
    kept: Callable[[torch.Tensor], torch.Tensor] = tolerance_share,
) -> torch.Tensor:
    """lDDT (…, L) in [0, 1] of points (…, L, 3) over every other residue near in truth; NaN where there is none."""
    # Distances by matrix products would lose the digits of near points.
    here, there = (torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") for x in (points, true))
    near = (there <= INCLUSION) & known[..., :, None] & known[..., None, :]
    near &= ~torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
    return masked_mean(kept((here - there).abs()), near, -1).masked_fill(~near.any(-1), torch.nan)
