"""TM-score of two chains whose residues do not correspond: which superposition and residue pairs make it largest?

The search follows TM-align (Zhang and Skolnick 2005, doi:10.1093/nar/gki524): start from many superpositions, align
residues by dynamic programming, superpose anew, repeat. Three things differ. Starts are superpositions of all pairs of
short windows; biotite does the dynamic programming; and the sum of Σ 1/(1 + (d/d0)²) is climbed by reweighted least
squares, which never lowers it. Every value is a true lower bound of the maximum, as TM-align's own values are.
`biotite.structure.superimpose_structural_homologs` has a single start: on unrelated domains it falls short of TM-align
by 0.1 on average.

Coordinates are arrays of shape (n, 3) in Å, in the order of the chain.
"""

import numpy as np
from biotite.sequence import PurePositionalSequence
from biotite.sequence.align import SubstitutionMatrix, align_optimal
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

Transform = tuple[np.ndarray, np.ndarray]  # rotation and shift
Pairs = tuple[np.ndarray, np.ndarray]  # indices of residues
WINDOW, WINDOWS = 20, 30  # residues of a window, windows of a chain: as many starts as there are pairs of windows
FEW_WINDOWS = 8  # where only the promise of a pair of chains is wanted
TRIED, KEPT = 30, 4  # starts that are aligned once, and of those the ones followed to the end
GAPS = (-0.6, 0.0)  # cost of opening a gap, in units of one residue pair's score; TM-align's two values
TOLERANCE = 1e-4  # residue pairs: a sum that grew by less is at its top
STEPS = 20  # most rounds of alignment from one start; a few are enough
SCALE = 1000  # dynamic programming works on integers


def d0(length: int) -> float:
    """Distance in Å at which a pair of residues counts one half, for chains of `length` residues.

    Source: Zhang and Skolnick 2004, doi:10.1002/prot.20264; with TM-align's floor for short chains.
    """
    return max(1.24 * max(length - 15, 0) ** (1 / 3) - 1.8, 0.5)


def best_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `a` and `b` of the residue pairs of the best alignment found, whichever chain comes first.

    Pairs that stay far apart are left out by TM-align's length-dependent cut-off, so that RMSD and aligned length
    mean the same as there.
    """
    if (len(a), a.tobytes()) > (len(b), b.tobytes()):
        return best_pairs(b, a)[::-1]
    scale = d0(len(a))
    first = [refine(a, b, move, scale, GAPS[0], rounds=1) for move in start_transforms(a, b)]
    climbed = []
    for score, move, pairs in sorted(first, key=lambda found: -found[0])[:KEPT]:
        climbed.append((score, move, pairs))
        for gap in GAPS:
            climbed.append(refine(a, b, climbed[-1][1], scale, gap, STEPS))
    _, move, (i, j) = max(climbed, key=lambda found: found[0])
    distance = np.linalg.norm(a[i] - apply_transform(move, b[j]), axis=1)
    near = distance <= max(1.5 * len(a) ** 0.3 + 3.5, np.sort(distance)[:3].max())
    return i[near], j[near]


def tm_of_pairs(a: np.ndarray, b: np.ndarray, length: int) -> float:
    """TM-score of paired residues, normalised by `length`, at the best superposition of `b` on `a` that is found."""
    return refine_pairs(a, b, superpose_points(a, b), d0(length), rounds=100)[0] / length


def chain_transform(a: np.ndarray, b: np.ndarray) -> Transform:
    """What lays chain `b` on chain `a` by the pairs of their best alignment, as TM-scores are computed."""
    i, j = best_pairs(a, b)
    return refine_pairs(a[i], b[j], superpose_points(a[i], b[j]), d0(max(len(a), len(b))), rounds=100)[1]


def rmsd(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square distance in Å of paired points after the least-squares superposition."""
    return float(np.sqrt(np.mean(np.sum((a - apply_transform(superpose_points(a, b), b)) ** 2, axis=1))))


def start_transforms(a: np.ndarray, b: np.ndarray) -> list[Transform]:
    """The superpositions of window on window that bring the most residues of `b` near any residue of `a`."""
    rotation, shift, nearness = window_placements(a, b, WINDOWS, 2)
    chosen = np.argsort(-nearness, kind="stable")[:TRIED]
    return [(rotation[k], shift[k]) for k in chosen]


def coarse_score(a: np.ndarray, b: np.ndarray) -> float:
    """About which share of the longer chain comes near the other at best: a hundredth of the work of an alignment."""
    if len(a) > len(b):  # residues of the longer that have no partner of their own do not count
        a, b = b, a
    return 3 * window_placements(b, a, FEW_WINDOWS, 3)[2].max() / len(b)


def window_placements(a: np.ndarray, b: np.ndarray, count: int, step: int) -> tuple:
    """Superpositions of `b` on `a`, window on window: rotations, shifts, and the closeness that each brings about.

    Args:
        count: of windows of each chain.
        step: residues of `b` that are looked at, one in so many: neighbours in a chain say much the same.
    """
    on, moved = spread_windows(a, count), spread_windows(b, count)
    rotation, shift = superpose_points(np.repeat(on, len(moved), axis=0), np.tile(moved, (len(on), 1, 1)))
    points = b[::step] @ rotation + shift
    scale = max(d0(len(a)), 3.0)  # a start may be coarser than the score it leads to
    distance, _ = KDTree(a).query(points.reshape(-1, 3), distance_upper_bound=4 * scale)
    return rotation, shift, distance_score(distance, scale).reshape(len(rotation), -1).sum(axis=1)


def spread_windows(a: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` evenly spread windows, shape (windows, WINDOW, 3)."""
    at = np.unique(np.linspace(0, len(a) - WINDOW, count).round().astype(int))
    return np.stack([a[k : k + WINDOW] for k in at])


def refine(a: np.ndarray, b: np.ndarray, move: Transform, scale: float, gap: float, rounds: int) -> tuple:
    """Aligns and superposes in turn while the score grows; returns `(score, move, pairs)`."""
    none = np.empty(0, dtype=int)
    best = (-1.0, move, (none, none))
    for _ in range(rounds):
        i, j = align_residues(a, apply_transform(move, b), scale, gap)
        score, move = refine_pairs(a[i], b[j], move, scale, rounds=10 if rounds == 1 else 30)
        if score <= best[0] + 1e-3:
            break
        best = (score, move, (i, j))
    return best


def align_residues(a: np.ndarray, b: np.ndarray, scale: float, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Residue pairs of the global alignment with the largest Σ 1/(1 + (d/d0)²), gaps at the ends being free."""
    # at least 1: an alignment of chains that lie far apart is still not empty
    scores = np.maximum(SCALE * distance_score(cdist(a, b), scale), 1).astype(np.int32)
    rows, columns = PurePositionalSequence(len(a)), PurePositionalSequence(len(b))
    matrix = SubstitutionMatrix(rows.alphabet, columns.alphabet, scores)
    penalty = (round(gap * SCALE), 0)
    trace = align_optimal(rows, columns, matrix, penalty, terminal_penalty=False, max_number=1)[0].trace
    return tuple(trace[(trace >= 0).all(axis=1)].T)


def refine_pairs(a: np.ndarray, b: np.ndarray, move: Transform, scale: float, rounds: int) -> tuple[float, tuple]:
    """Climbs Σ 1/(1 + (d/d0)²) of paired points from the superposition `move`; returns `(sum, move)`.

    1/(1 + u) is convex in u = (d/d0)², so its tangent lies below it: least squares weighted by the slope 1/(1 + u)²
    cannot lower the sum.
    """
    score = -np.inf
    for _ in range(rounds):
        near = distance_score(np.linalg.norm(a - apply_transform(move, b), axis=1), scale)
        if near.sum() - score < TOLERANCE:
            break
        score, move = near.sum(), superpose_points(a, b, near**2)
    return float(distance_score(np.linalg.norm(a - apply_transform(move, b), axis=1), scale).sum()), move


def distance_score(distance: np.ndarray, scale: float) -> np.ndarray:
    return 1 / (1 + (distance / scale) ** 2)


def superpose_points(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The proper rotation and shift that move `b` on `a` with the least (weighted) squared distance.

    Args:
        a, b: paired points, shape (..., n, 3).
        weight: shape (..., n).

    Returns:
        rotation (..., 3, 3) and shift (..., 1, 3), for `b @ rotation + shift`.

    Source: Kabsch 1976, doi:10.1107/S0567739476001873.
    """
    share = np.full(a.shape[:-1], 1.0) if weight is None else weight
    share = (share / share.sum(axis=-1, keepdims=True))[..., None]
    centre_a, centre_b = ((share * x).sum(axis=-2, keepdims=True) for x in (a, b))
    left, _, right = np.linalg.svd(np.swapaxes(b - centre_b, -1, -2) @ (share * (a - centre_a)))
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]  # never a mirror image
    rotation = left @ right
    return rotation, centre_a - centre_b @ rotation


def apply_transform(move: Transform, b: np.ndarray) -> np.ndarray:
    rotation, shift = move
    return b @ rotation + shift
