"""Two invented species' transcripts in GENCODE's FASTA format.

An mRNA is 5′ UTR, coding sequence and 3′ UTR; an lncRNA is made of the untranslated kind of sequence alone. That kind
shares most of its 3-mer statistics with coding sequence, and genes differ in GC content as isochores do, so that
composition tells the classes apart only in part and the reading frame tells more. The species differ in codon usage,
in untranslated sequence and in lengths, so that what was learnt of one carries over to the other only in part.
"""

import gzip
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from Bio.Data.CodonTable import unambiguous_dna_by_id

from loratory.data.files import atomic_write
from loratory.domains.lncrna.sources import Simulation

# Amino acids in UniProtKB/Swiss-Prot, per cent.
AMINO_ACID_SHARES = {
    "A": 8.3, "R": 5.5, "N": 4.1, "D": 5.5, "C": 1.4, "Q": 3.9, "E": 6.7, "G": 7.1, "H": 2.3, "I": 5.9,
    "L": 9.7, "K": 5.8, "M": 2.4, "F": 3.9, "P": 4.7, "S": 6.7, "T": 5.4, "W": 1.1, "Y": 2.9, "V": 6.9,
}  # fmt: skip
# Odds ratios of neighbouring nucleotides about as in vertebrate genomes: CpG is rare, TpA uncommon.
NEIGHBOURS = {
    "AA": 1.13, "AC": 0.84, "AG": 1.17, "AT": 0.87, "CA": 1.20, "CC": 1.17, "CG": 0.25, "CT": 1.17,
    "GA": 1.03, "GC": 1.01, "GG": 1.17, "GT": 0.84, "TA": 0.74, "TC": 1.03, "TG": 1.20, "TT": 1.13,
}  # fmt: skip
RUN = 1.3  # odds of a third equal nucleotide in a row
GENES_VARY = 0.35  # standard deviation over genes of the log odds of G and C
LETTERS = "ACGT"
CODONS = ["".join(codon) for codon in product(LETTERS, repeat=3)]
STANDARD_CODE = unambiguous_dna_by_id[1]
STOPS = sorted(STANDARD_CODE.stop_codons)


@dataclass(frozen=True)
class Species:
    """Traits of a species.

    Attributes:
        prefix: of every id.
        gc3, gc: log odds of G and C at third codon positions, and in untranslated sequence.
        likeness: share of untranslated sequence's 3-mer statistics that it has from coding sequence.
        lengths: of mRNA and lncRNA, shape parameters of the beta distribution from the shortest to the longest.
    """

    prefix: str
    gc3: float
    gc: float
    likeness: float
    lengths: tuple[tuple[float, float], tuple[float, float]]


SPECIES = {
    "general": Species("SIMA", gc3=-0.6, gc=0.5, likeness=0.5, lengths=((2.0, 1.6), (1.4, 1.8))),
    "domain": Species("SIMB", gc3=0.6, gc=-0.4, likeness=0.5, lengths=((2.2, 1.4), (1.3, 2.2))),
}


def simulate(simulation: Simulation, population: str, seed: int, out: Path | str) -> dict[str, list[str]]:
    """Writes `coding.fa.gz` and `noncoding.fa.gz` into the folder `out`; the same arguments give the same bytes."""
    species = SPECIES[population]
    rng = np.random.default_rng([seed, list(SPECIES).index(population)])
    numbers = rng.permutation(2 * simulation.genes) + 1  # gene numbers do not depend on the class
    paths = {}
    for role, mine in zip(("coding", "noncoding"), np.split(numbers, 2)):
        genes = (record for number in sorted(mine) for record in gene_records(rng, simulation, species, role, number))
        write_gzip(Path(out) / f"{role}.fa.gz", "".join(genes))
        paths[role] = [f"{role}.fa.gz"]
    return paths


def gene_records(
    rng: np.random.Generator, simulation: Simulation, species: Species, role: str, number: int
) -> Iterator[str]:
    """Yields the FASTA records of a gene's isoforms."""
    share = rng.beta(*species.lengths[role == "noncoding"])
    length = simulation.shortest + round(share * (simulation.longest - simulation.shortest))
    tilt = rng.normal(0, GENES_VARY)
    middle = round(length * rng.uniform(0.45, 0.8) / 3) * 3
    five = (length - middle) // 4
    usage = codon_usage(species.gc3 + tilt)
    steps = untranslated_transitions(usage, species.gc + tilt, species.likeness)
    body = coding_sequence(rng, usage, middle // 3) if role == "coding" else random_walk(rng, steps, middle)
    parts = random_walk(rng, steps, five), body, random_walk(rng, steps, length - middle - five)
    versions = [parts, *(random_isoform(rng, *parts) for _ in range(rng.integers(simulation.isoforms)))]
    versions = [v for v in dict.fromkeys(versions) if sum(map(len, v)) >= simulation.shortest]
    for index, version in enumerate(versions, start=1):
        yield gencode_record(species.prefix, role, number, index, version)


def random_isoform(rng: np.random.Generator, five: str, body: str, three: str) -> tuple[str, str, str]:
    """Another start of transcription, another polyadenylation site, perhaps an exon skipped in frame."""
    five = five[rng.integers(len(five) // 2 + 1) :]
    three = three[: len(three) - rng.integers(len(three) // 2 + 1)]
    codons = len(body) // 3
    exon = codons // 6
    if rng.random() < 0.5:
        start = 3 * rng.integers(1, codons - exon)
        body = body[:start] + body[start + 3 * exon :]
    return five, body, three


def codon_usage(gc3: float) -> np.ndarray:
    """(4, 4, 4) frequencies of codons, letters in the order A C G T; stop codons have none.

    Frequency of the amino acid × preference among its codons, which favours G and C at the third position by the log
    odds `gc3` and halves codons with CpG.
    """
    table = STANDARD_CODE.forward_table
    preference = {codon: np.exp(gc3 * (codon[2] in "GC")) * (0.5 if "CG" in codon else 1) for codon in sorted(table)}
    total = dict.fromkeys(AMINO_ACID_SHARES, 0.0)
    for codon, weight in preference.items():
        total[table[codon]] += weight
    usage = [AMINO_ACID_SHARES[table[c]] * preference[c] / total[table[c]] if c in table else 0.0 for c in CODONS]
    return np.reshape(usage, (4, 4, 4)) / sum(usage)


def coding_sequence(rng: np.random.Generator, usage: np.ndarray, codons: int) -> str:
    """ATG, codons by usage, a stop codon."""
    return "ATG" + "".join(rng.choice(CODONS, codons - 2, p=usage.ravel())) + str(rng.choice(STOPS))


def untranslated_transitions(usage: np.ndarray, gc: float, likeness: float) -> np.ndarray:
    """(4, 4, 4) probabilities of a nucleotide (last axis) after the two before it.

    A mixture of what coding sequence shows when its frame is ignored (weight `likeness`) and of `NEIGHBOURS`, with
    log odds `gc` of G and C.
    """
    first, last = usage.sum((1, 2)), usage.sum((0, 1))
    # frequencies of 3-mers that start at each position of a codon, neighbouring codons being independent
    in_frames = usage, np.einsum("ab,c->abc", usage.sum(0), first), np.einsum("a,bc->abc", last, usage.sum(2))
    coding = in_frames[0] + in_frames[1] + in_frames[2]
    single = np.exp(gc * np.array([0, 1, 1, 0]))
    pairs = np.reshape([NEIGHBOURS[a + b] for a in LETTERS for b in LETTERS], (4, 4))
    other = np.repeat((pairs * single)[None], 4, axis=0)
    other[range(4), range(4), range(4)] *= RUN
    shares = [table / table.sum(-1, keepdims=True) for table in (coding, other)]
    return likeness * shares[0] + (1 - likeness) * shares[1]


def random_walk(rng: np.random.Generator, steps: np.ndarray, length: int) -> str:
    """A sequence of that length from the Markov chain `steps`, see `untranslated_transitions`."""
    bounds = steps.cumsum(-1)[..., :3].tolist()
    a, b = rng.integers(4, size=2).tolist()
    letters = []
    for u in rng.random(length).tolist():
        a, b = b, bisect(bounds[a][b], u)
        letters.append(LETTERS[b])
    return "".join(letters)


def gencode_record(prefix: str, role: str, number: int, index: int, parts: tuple[str, str, str]) -> str:
    """One FASTA record as GENCODE writes it: UTR and CDS ranges, from 1, only where the transcript is coding."""
    sequence = "".join(parts)
    ranges, at = [], 0
    for name, part in zip(("UTR5", "CDS", "UTR3"), parts):
        if part and role == "coding":
            ranges.append(f"{name}:{at + 1}-{at + len(part)}")
        at += len(part)
    symbol = f"{prefix}{number}"
    names = [f"{prefix}T{number:07d}{index:02d}.1", f"{prefix}G{number:07d}.1", "-", "-", f"{symbol}-{200 + index}"]
    header = "|".join([*names, symbol, str(len(sequence)), *ranges]) + "|"
    lines = [sequence[start : start + 60] for start in range(0, len(sequence), 60)]
    return "\n".join([">" + header, *lines]) + "\n"


def write_gzip(path: Path, text: str) -> None:
    """No file name and no time inside: the same text gives the same bytes."""
    with (
        atomic_write(path) as aside,
        open(aside, "wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as stream,
    ):
        stream.write(text.encode())
