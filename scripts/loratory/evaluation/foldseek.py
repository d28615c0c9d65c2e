"""Which known structures are near to others, by Foldseek where it is installed (`foldseek` on the path).

Source: van Kempen et al. 2024, doi:10.1038/s41587-023-01773-0. It says what is promising among many; the TM-scores
themselves are those of `structure.tm_score`, the same with and without it.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loratory.data.structures import BACKBONE
from loratory.evaluation.structure import KnownChain

# TM-align for every pair that the filter leaves, and no bound on the E-value, which is that of other alignments.
OPTIONS = ("--alignment-type", "1", "-e", "inf", "--threads", "1", "-v", "1")
FIELDS = "query,target,qtmscore,ttmscore"
FILE = r"(\d+)(?:\.pdb)?(?:_\w+)?"  # its number; versions name its chain differently: `7`, `7.pdb`, `7_A`, `7.pdb_A`
SCORE = r"(\d*\.?\d+(?:[Ee]-?\d+)?)"
LINE = re.compile("\t".join((FILE, FILE, SCORE, SCORE)))


def is_installed() -> bool:
    return shutil.which("foldseek") is not None


def promising_references(
    models: Mapping[str, Path], references: Mapping[str, KnownChain], most: int
) -> dict[str, list[str]]:
    """{model: the references with the largest TM-scores by the longer of both chains, the best first}.

    A model that Foldseek finds nothing for is missing: its prefilter may be blind where an alignment is not.

    Args:
        models: {name: PDB file}. most: references of a model.

    Raises:
        RuntimeError: Foldseek fails, or writes another table than it was asked for.
    """
    left, right = sorted(models), sorted(references)
    with TemporaryDirectory(prefix="foldseek-") as name:
        folder = Path(name)
        for part in ("models", "references"):
            (folder / part).mkdir()
        for number, model in enumerate(left):
            shutil.copyfile(models[model], folder / "models" / f"{number}.pdb")
        for number, reference in enumerate(right):
            (folder / "references" / f"{number}.pdb").write_text(chain_text(references[reference]))
        table = folder / "hits.tsv"
        run_foldseek(
            *("easy-search", folder / "models", folder / "references", table, folder / "tmp", *OPTIONS),
            *("--max-seqs", max(300, len(right)), "--format-output", FIELDS),
        )
        hits = read_hits(table.read_text())
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (query, target), score in hits.items():
        found[left[query]].append((-score, right[target]))
    return {model: [reference for _, reference in sorted(near)[:most]] for model, near in found.items()}


def read_hits(table: str) -> dict[tuple[int, int], float]:
    """{numbers of model and reference: TM-score by the longer chain}, which is the smaller of its two; the best of a
    pair.

    Raises:
        RuntimeError: a line of something else.
    """
    best: dict[tuple[int, int], float] = {}
    for line in table.splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            raise RuntimeError(f"foldseek wrote no line of {FIELDS}: {line[:80]}")
        pair = int(found[1]), int(found[2])
        best[pair] = max(best.get(pair, 0.0), min(float(found[3]), float(found[4])))
    return best


def run_foldseek(*arguments: object) -> None:
    command = ["foldseek", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()[-10:]
        raise RuntimeError(f"foldseek {arguments[0]} ended with code {done.returncode}:\n" + "\n".join(output))


def chain_text(chain: KnownChain, b_factors: np.ndarray | None = None) -> str:
    """Its PDB text: N, CA, C and O, residues from 1; a B-factor for each residue, else 0."""
    from biotite.sequence import ProteinSequence

    lines: list[str] = []
    factors = np.zeros(len(chain.sequence)) if b_factors is None else b_factors
    for number, (letter, atoms, factor) in enumerate(zip(chain.sequence, chain.backbone, factors), start=1):
        residue = ProteinSequence.convert_letter_1to3(letter)
        for name, (x, y, z) in zip(BACKBONE, atoms.tolist()):
            if x != x:  # unresolved
                continue
            lines.append(
                f"ATOM  {len(lines) + 1:>5}  {name:<3} {residue} A{number:>4}    {x:8.3f}{y:8.3f}{z:8.3f}"
                f"  1.00{factor:6.2f}           {name[0]}"
            )
    return "\n".join([*lines, "TER", "END", ""])
