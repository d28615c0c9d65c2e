"""FASTA to checked records: our streaming reader and residue check against Biopython's SeqIO with the same check.

    python benchmarks/read_fasta.py [records]

A made-up UniRef-like file with 60 columns, plain and gzip; CPU seconds of the process, medians over rounds in turn.
"""

import gzip
import random
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from Bio import SeqIO  # noqa: E402

from loratory.data.alphabets import RESIDUES, invalid_letters  # noqa: E402
from loratory.data.fasta import read_fasta  # noqa: E402
from loratory.data.ledger import Ledger  # noqa: E402

ROUNDS = 3


def write(path: Path, records: int) -> None:
    draw = random.Random(0)
    with open(path, "w") as file:
        for number in range(records):
            sequence = "".join(draw.choices(RESIDUES, k=draw.randint(50, 550)))
            file.write(f">UniRef50_A{number:07d} protein n=1 Tax=Simulated TaxID=1 RepID=A{number:07d}\n")
            file.writelines(sequence[i : i + 60] + "\n" for i in range(0, len(sequence), 60))
    with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=6) as packed:
        packed.write(plain.read())


def ours(path) -> int:
    return sum(len(s) for _, _, _, s in read_fasta(path, Ledger()) if not invalid_letters(s, RESIDUES))


def theirs(path) -> int:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        return sum(len(r.seq) for r in SeqIO.parse(file, "fasta") if not set(str(r.seq)) - set(RESIDUES))


def main(records: int) -> None:
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "uniref.fasta"
        write(plain, records)
        size = plain.stat().st_size / 1e6
        for path in (plain, Path(f"{plain}.gz")):
            seconds, counted = {"biopython": [], "loratory": []}, {}
            for _ in range(ROUNDS):
                for name, run in {"biopython": theirs, "loratory": ours}.items():
                    before = process_time()
                    counted[name] = run(path)
                    seconds[name].append(process_time() - before)
            if counted["biopython"] != counted["loratory"]:
                raise SystemExit("the two counted different residues: no ratio")
            slow, fast = median(seconds["biopython"]), median(seconds["loratory"])
            rates = f"biopython {size / slow:.0f} MB/s, loratory {size / fast:.0f} MB/s"
            print(f"{path.suffix}: {rates}, ratio {slow / fast:.1f} (equal residues)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
