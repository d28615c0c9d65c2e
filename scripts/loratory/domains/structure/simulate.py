"""Simulated proteins whose backbone follows from their sequence: something to learn, and nothing to conclude from.

Families are drawn as in `domains.protein.simulate`, from another stream of random numbers. Sites of helices and
strands get the torsions of their kind, sites of loops those that their residue prefers. There is no packing, no
hydrophobic core, no side chain: the chain goes where its torsions lead.
"""

import gzip
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from scipy.spatial.distance import pdist, squareform

from loratory.data.files import atomic_write
from loratory.data.structures import BACKBONE
from loratory.domains.protein.simulate import (
    POPULATIONS,
    ProteinPopulation,
    draw_ancestor,
    evolve_chain,
    family_sizes,
    residue_tables,
)
from loratory.domains.structure.sources import Simulation

# φ and ψ in degrees: ideal helix and strand, and the other basins of the Ramachandran plot.
HELIX, STRAND, POLYPROLINE, BRIDGE, LEFT = (-57, -47), (-120, 130), (-65, 145), (-90, 0), (57, 40)
# A residue's basin in a loop: glycine and asparagine turn left, proline cannot but be extended, and the rest follows
# its preference for helix or strand (Chou & Fasman 1978, doi:10.1146/annurev.bi.47.070178.001343).
BASINS = {"GN": LEFT, "P": POLYPROLINE, "DS": BRIDGE, "AEHKLMQR": HELIX, "CFITVWY": STRAND}
LOOPS = {residue: basin for residues, basin in BASINS.items() for residue in residues}
NOISE = {"helix": 2.0, "strand": 2.0, "loop": 5.0}  # standard deviation of φ and ψ, degrees: loops are less certain

# Å and degrees: Engh & Huber 1991, doi:10.1107/S0108767391001071. A bond and the angle at its end, along the chain.
BONDS = {"N-CA": 1.458, "CA-C": 1.525, "C-N": 1.329}
ANGLES = {"N-CA-C": 111.2, "CA-C-N": 116.2, "C-N-CA": 121.7}
CARBONYL, CARBONYL_ANGLE = 1.231, 120.8  # C=O, and CA-C-O

NEAREST, APART = 3.6, 3  # Å that two Cα keep from each other, if they are at least this many residues apart
TRIES = 20  # draws of an ancestor, and of each descendant, until the chain does not cross itself


def simulate(simulation: Simulation, population: str, seed: int, out: Path | str) -> dict[str, list[str]]:
    """Writes `chain_set.jsonl.gz` into the folder `out`: name, seq, coords (N, CA, C, O) and `origin`."""
    built, rng = POPULATIONS[population], random.Random(f"structure {population} {seed}")
    chains = list(family_chains(simulation, built, rng))
    rng.shuffle(chains)
    path = Path(out) / "chain_set.jsonl.gz"
    with atomic_write(path) as aside, open(aside, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
        for number, (sequence, atoms) in enumerate(chains, start=1):
            stream.write(chain_line(f"{built.prefix}{number:06d}.A", sequence, atoms).encode())
    return {"chains": [path.name]}


def family_chains(
    simulation: Simulation, population: ProteinPopulation, rng: random.Random
) -> Iterator[tuple[str, np.ndarray]]:
    """`(sequence, atoms)` of every member of every family."""
    bounds, tables = (simulation.min_length, simulation.max_length), residue_tables(population)
    for size in family_sizes(simulation, rng):
        ancestor, _ = draw_uncrossed(partial(draw_ancestor, population, tables, bounds, rng), rng)
        for _ in range(size):
            chain, atoms = draw_uncrossed(partial(evolve_chain, ancestor, tables, bounds, rng), rng)
            yield "".join(residue for _, residue in chain), atoms


def draw_uncrossed(
    draw: Callable[[], list[tuple[str, str]]], rng: random.Random
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The first chain drawn that does not cross itself, with its atoms; after TRIES, the one that does so least."""
    found = []
    for _ in range(TRIES):
        chain = draw()
        atoms = build_backbone(chain_torsions(chain, rng))
        found.append((count_crossings(atoms), chain, atoms))
        if not found[-1][0]:
            break
    return min(found, key=lambda item: item[0])[1:]


def chain_torsions(chain: Sequence[tuple[str, str]], rng: random.Random) -> np.ndarray:
    """φ and ψ of each `(site, residue)`, in degrees, shape (residues, 2)."""
    angles = []
    for site, residue in chain:
        kind = site.partition("_")[0] if site.startswith(("helix", "strand")) else "loop"
        basin = {"helix": HELIX, "strand": STRAND}.get(kind) or LOOPS[residue]
        angles.append([rng.gauss(mean, NOISE[kind]) for mean in basin])
    return np.array(angles)


def build_backbone(angles: np.ndarray) -> np.ndarray:
    """N, CA, C and O in Å, shape (residues, 4, 3), of a chain with trans peptide bonds.

    Each atom is placed in the frame of the bond before it (NeRF: Parsons et al. 2005, doi:10.1002/jcc.20237): x along
    that bond, the bond before in the xy plane. The first N is the origin.

    Args:
        angles: φ and ψ in degrees, shape (residues, 2).
    """
    n = len(angles)
    about = np.stack([*angles.T, np.full(n, 180.0)], axis=1).ravel()[1:-1]  # ψ₁ ω₁ φ₂ ψ₂ …, up to the last ψ
    bends = np.tile([ANGLES["CA-C-N"], ANGLES["C-N-CA"], ANGLES["N-CA-C"]], n)[: len(about)]
    first = bond_rotations(np.zeros(1), np.array([ANGLES["N-CA-C"]]))
    frames = np.array(
        list(accumulate([np.eye(3), *first, *bond_rotations(about, bends)], np.matmul))
    )  # one for each bond
    lengths = np.tile(list(BONDS.values()), n)[: len(frames)]
    points = np.concatenate([np.zeros((1, 3)), np.cumsum(frames[:, :, 0] * lengths[:, None], axis=0)])
    carbons = frames[1::3] @ bond_rotations(angles[:, 1] + 180, np.full(n, CARBONYL_ANGLE))
    atoms = points[: 3 * n].reshape(n, 3, 3)
    oxygens = atoms[:, 2] + CARBONYL * carbons[:, :, 0]
    return np.concatenate([atoms, oxygens[:, None]], axis=1)


def bond_rotations(torsion: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotations from a bond's frame to the next bond's, shape (n, 3, 3): about the bond, then by the angle at its end.

    Args:
        torsion, angle: in degrees, shape (n,).
    """
    (s, c), (t, d) = ((np.sin(a), np.cos(a)) for a in (np.radians(torsion), np.radians(180 - angle)))
    zero = np.zeros_like(s)
    return np.stack([d, -t, zero, c * t, c * d, -s, s * t, s * d, c], axis=-1).reshape(-1, 3, 3)


def count_crossings(atoms: np.ndarray) -> int:
    """How many pairs of Cα atoms, APART or more residues apart, are nearer than NEAREST."""
    close = squareform(pdist(atoms[:, BACKBONE.index("CA")])) < NEAREST
    return int(np.triu(close, APART).sum())


def chain_line(name: str, sequence: str, atoms: np.ndarray) -> str:
    """A line of the file; three decimals, as PDB files have."""
    rounded = np.round(atoms, 3) + 0.0  # no minus zero
    coords = {atom: rounded[:, i].tolist() for i, atom in enumerate(BACKBONE)}
    return json.dumps({"name": name, "seq": sequence, "coords": coords, "origin": "simulated"}) + "\n"
