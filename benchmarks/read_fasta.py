"""FASTA to checked records: our streaming reader against Biopython's two, all with our check of residues.

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
from typing import IO

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from Bio import SeqIO  # noqa: E402
from Bio.SeqIO.FastaIO import SimpleFastaParser  # noqa: E402

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


def loratory(path: Path) -> int:
    return sum(len(s) for _, _, _, s in read_fasta(path, Ledger()) if not invalid_letters(s, RESIDUES))


def biopython(path: Path) -> int:
    """As most people read FASTA: a `SeqRecord` for each."""
    with open_text(path) as file:
        return sum(len(r.seq) for r in SeqIO.parse(file, "fasta") if not invalid_letters(bytes(r.seq), RESIDUES))


def simple_parser(path: Path) -> int:
    """Biopython's fast reader: headers and sequences as they are, no look for what is malformed."""
    with open_text(path) as file:
        return sum(len(s) for _, s in SimpleFastaParser(file) if not invalid_letters(s.encode(), RESIDUES))


def open_text(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else open(path)


ARMS = {"loratory": loratory, "Biopython's SimpleFastaParser": simple_parser, "Biopython's SeqIO": biopython}


def main(records: int) -> None:
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "uniref.fasta"
        write(plain, records)
        size = plain.stat().st_size / 1e6
        for path in (plain, Path(f"{plain}.gz")):
            seconds: dict[str, list[float]] = {name: [] for name in ARMS}
            counted = set()
            for _ in range(ROUNDS):
                for name, count_residues in ARMS.items():
                    before = process_time()
                    counted.add(count_residues(path))
                    seconds[name].append(process_time() - before)
            if len(counted) > 1:
                raise SystemExit("they counted different residues: no ratio")
            rates = {name: size / median(spent) for name, spent in seconds.items()}
            print(path.suffix, "; ".join(f"{n} {r:.0f} MB/s ({rates['loratory'] / r:.2f})" for n, r in rates.items()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
