"""Protein families made up from helices, strands, loops and motifs: something to learn, and nothing to conclude from.

Families of one population are unrelated, yet built alike: what a model learns from some it can use on the others.
"""

import gzip
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

from loratory.data.alphabets import RESIDUES
from loratory.data.files import atomic_write
from loratory.domains.protein.sources import Simulation

# Per cent of each residue in UniProtKB/Swiss-Prot (release statistics), in the order of RESIDUES.
COMPOSITION = (8.3, 1.4, 5.5, 6.7, 3.9, 7.1, 2.3, 5.9, 5.8, 9.7, 2.4, 4.1, 4.7, 3.9, 5.5, 6.6, 5.4, 6.9, 1.1, 2.9)

# A site of a fold and the residues it favours (these many times over the composition) or shuns.
FAVOUR, SHUN = 8, 0.05
SITES = {
    "helix_core": ("LAIMFV", "GPDNK"),
    "helix_face": ("EKRQAD", "GPVWC"),
    "strand_core": ("VIFYLC", "GPDNEK"),
    "strand_face": ("TKSRQN", "GPAML"),
    "loop": ("GPNDST", "FWMIL"),
}
# Buried sites lie 3 to 4 residues apart in a helix and every other residue in a strand.
HELIX = ("helix_core", "helix_face", "helix_face", "helix_core", "helix_face", "helix_face", "helix_face")
STRAND = ("strand_core", "strand_face")
HELIX_LENGTH, STRAND_LENGTH, LOOP_LENGTH = (9, 18), (5, 8), (2, 6)

# Share of sites that a member has drawn anew since the ancestor, and indels for each site of its loops.
DIVERGENCE, INDELS = (0.1, 0.4), 0.03


@dataclass(frozen=True)
class ProteinPopulation:
    """How the proteins of a population are built.

    Attributes:
        prefix: of accessions.
        taxa: {taxon identifier: (name, mnemonic)}.
        factors: {residues: times over the average composition}.
        helices: share of helices among helices and strands.
        motifs: share of loops that are motifs.
        dictionary: the motifs; `[ST]` either residue, `x` any of a loop.
    """

    prefix: str
    taxa: dict[int, tuple[str, str]]
    factors: dict[str, float]
    helices: float
    motifs: float
    dictionary: tuple[str, ...]


POPULATIONS = {
    "general": ProteinPopulation(
        prefix="SIMG",
        taxa={
            562: ("Escherichia coli", "ECOLX"),
            1423: ("Bacillus subtilis", "BACIU"),
            3702: ("Arabidopsis thaliana", "ARATH"),
            9606: ("Homo sapiens", "HUMAN"),
        },
        factors={},
        helices=0.5,
        motifs=0.3,
        dictionary=(
            "[AG]xxxxGK[ST]",  # P-loop
            "GxGxxG",  # Rossmann fold
            "HExxH",  # zinc peptidase
            "DxDxDGxxxxxE",  # EF hand
            "GDSGGP",  # serine protease
            "HRDLKxxN",  # protein kinase
            "LSGGQ",  # ABC transporter
            "CxxCxxxFxxxxxxxxHxxxH",  # zinc finger
        ),
    ),
    # Heat-loving archaea and bacteria: charged and β-branched residues instead of polar, heat-labile ones, and
    # the iron-sulphur proteins of their metabolism (Cambillau & Claverie 2000, J. Biol. Chem. 275, 32383).
    "domain": ProteinPopulation(
        prefix="SIMT",
        taxa={
            274: ("Thermus thermophilus", "THETH"),
            2190: ("Methanocaldococcus jannaschii", "METJA"),
            2261: ("Pyrococcus furiosus", "PYRFU"),
            2336: ("Thermotoga maritima", "THEMA"),
        },
        factors={"E": 1.7, "KR": 1.6, "IV": 1.5, "Y": 1.3, "QNHSTC": 0.4, "DM": 0.7},
        helices=0.65,
        motifs=0.4,
        dictionary=(
            "CxxCxxCxxxCP",  # ferredoxin, 4Fe-4S
            "CxxxCxxC",  # radical SAM
            "WCGPC",  # thioredoxin
            "CxxCH",  # cytochrome c
            "KMSKS",  # aminoacyl-tRNA synthetase
            "[FY]xHIGH",  # aminoacyl-tRNA synthetase
            "YGDTDS",  # DNA polymerase B
            "[LIV]xDEAH",  # helicase
        ),
    ),
}


def simulate(simulation: Simulation, population: str, seed: int, out: Path | str) -> dict[str, str]:
    """Writes `uniref50.fasta.gz` into the folder `out`."""
    built, rng = POPULATIONS[population], random.Random(f"protein {population} {seed}")
    entries = list(family_sequences(simulation, built, rng))
    rng.shuffle(entries)
    path = Path(out) / "uniref50.fasta.gz"
    with (
        atomic_write(path) as aside,
        open(aside, "wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as stream,
    ):
        for number, (family, sequence) in enumerate(entries, start=1):
            stream.write(uniref_record(f"{built.prefix}{number:06d}", family, sequence, built, rng).encode())
    return {"fasta": path.name}


def family_sequences(
    simulation: Simulation, population: ProteinPopulation, rng: random.Random
) -> Iterator[tuple[int, str]]:
    """`(number of the family, sequence)`."""
    bounds, tables = (simulation.min_length, simulation.max_length), residue_tables(population)
    for family, size in enumerate(family_sizes(simulation, rng), start=1):
        ancestor = draw_ancestor(population, tables, bounds, rng)
        for _ in range(size):
            yield family, "".join(residue for _, residue in evolve_chain(ancestor, tables, bounds, rng))


def family_sizes(simulation: Simulation, rng: random.Random) -> list[int]:
    """Every family has a member, and the others fall at random."""
    sizes = [1] * simulation.families
    for family in rng.choices(range(simulation.families), k=simulation.n - simulation.families):
        sizes[family] += 1
    return sizes


def residue_tables(population: ProteinPopulation) -> dict[str, list[float]]:
    """Cumulative weights of the residues at each kind of site."""
    tables = {}
    for site, (favoured, shunned) in SITES.items():
        weights = []
        for residue, weight in zip(RESIDUES, COMPOSITION):
            weight *= next((factor for letters, factor in population.factors.items() if residue in letters), 1)
            weights.append(weight * (FAVOUR if residue in favoured else SHUN if residue in shunned else 1))
        tables[site] = list(accumulate(weights))
    return tables


def ancestral_sites(population: ProteinPopulation, rng: random.Random) -> Iterator[str]:
    """Sites without end: a key of SITES, or the residues that a motif allows there."""
    yield "M"
    while True:
        if rng.random() < population.motifs:
            for allowed, letter in re.findall(r"\[([A-Z]+)\]|(.)", rng.choice(population.dictionary)):
                yield "loop" if letter == "x" else allowed or letter
        else:
            yield from ["loop"] * rng.randint(*LOOP_LENGTH)
        pattern, length = (HELIX, HELIX_LENGTH) if rng.random() < population.helices else (STRAND, STRAND_LENGTH)
        start = rng.randrange(len(pattern))
        yield from (pattern[(start + i) % len(pattern)] for i in range(rng.randint(*length)))


def draw_residue(site: str, tables: Mapping[str, list[float]], rng: random.Random) -> str:
    return rng.choices(RESIDUES, cum_weights=tables[site])[0] if site in tables else rng.choice(site)


def draw_ancestor(
    population: ProteinPopulation, tables: Mapping[str, list[float]], bounds: tuple[int, int], rng: random.Random
) -> list[tuple[str, str]]:
    """`(site, residue)` along the chain."""
    sites = list(islice(ancestral_sites(population, rng), rng.randint(*bounds)))
    return [(site, draw_residue(site, tables, rng)) for site in sites]


def evolve_chain(
    ancestor: Sequence[tuple[str, str]],
    tables: Mapping[str, list[float]],
    bounds: tuple[int, int],
    rng: random.Random,
) -> list[tuple[str, str]]:
    """A descendant within the bounds of length; the motifs' fixed residues are never lost."""
    while True:
        divergence, chain = rng.uniform(*DIVERGENCE), []
        for site, residue in ancestor:
            event = rng.random() / INDELS if site == "loop" else 1
            if event < 0.5:
                continue
            chain.append((site, draw_residue(site, tables, rng) if rng.random() < divergence else residue))
            if event < 1:
                chain += [("loop", draw_residue("loop", tables, rng)) for _ in range(rng.randint(1, 3))]
        if bounds[0] <= len(chain) <= bounds[1]:
            return chain


def uniref_record(
    accession: str, family: int, sequence: str, population: ProteinPopulation, rng: random.Random
) -> str:
    """A FASTA record with the header of UniRef50, 60 residues a line."""
    tax_id = rng.choice(sorted(population.taxa))
    name, mnemonic = population.taxa[tax_id]
    header = f">UniRef50_{accession} Simulated protein of family {family} n={rng.randint(1, 40)} Tax={name}"
    lines = [sequence[i : i + 60] for i in range(0, len(sequence), 60)]
    return "\n".join([f"{header} TaxID={tax_id} RepID={accession}_{mnemonic}", *lines, ""])
