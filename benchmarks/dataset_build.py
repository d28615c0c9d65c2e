"""A sample of a large FASTA file: our pass over it against Biopython's SeqIO with transformers' EsmTokenizer.

    python benchmarks/dataset_build.py [records …]

Made-up UniRef-like files of 50 to 600 residues a record, 60 columns. Ours checks letters and lengths, drops copies,
accounts for every record and keeps 2,000; the peer reads and tokenizes the first 5,000, as scripts for ESM do, and
keeps nothing. A third arm builds the whole dataset without `max_records`, each record alone (`protocol: random`, as
MMseqs2 is a process of its own). Each arm is a process: CPU microseconds a record and the peak of resident memory.
Imports come before, on a few records: 0.8 s of the peer would weigh 160 µs on each of its 5,000.
"""

import json
import random
import resource
import subprocess
import sys
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

KEPT, TOKENIZED, FEW = 2000, 5000, 100
VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


def write_fasta(path: Path, records: int) -> None:
    draw = random.Random(0)
    residues = "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=1_000_000))
    with open(path, "w") as file:
        for number in range(records):
            length = draw.randint(50, 600)
            start = draw.randrange(len(residues) - length)
            lines = [residues[at : min(at + 60, start + length)] for at in range(start, start + length, 60)]
            file.write(f">UniRef50_A{number:08d} protein n=1 Tax=Simulated TaxID=1 RepID=A{number:08d}\n")
            file.write("\n".join([*lines, ""]))


def sample_file(path: Path) -> int:
    from loratory.data.ledger import Ledger
    from loratory.data.sampling import HashSample
    from loratory.domains.protein import build
    from loratory.domains.protein.sources import Dataset, Files

    dataset, ledger = Dataset(max_records=KEPT, max_length=600), Ledger()
    sample = HashSample(dataset.max_records, 0, build.DISTINCT, ledger)
    for record in build.read(Files(fasta=[str(path)]), dataset, ledger):
        sample.add_record(record)
    ledger.check_counts(path, sum(1 for _ in sample.kept_records()), 0)
    return ledger.n_in


def build_whole(path: Path) -> int:
    from loratory.domains.dataset import build_dataset
    from loratory.domains.protein.sources import Dataset, Files

    out = path.with_name("dataset")
    build_dataset("protein", Files(fasta=[str(path)]), Dataset(max_length=600, protocol="random"), 0, out)
    return json.loads((out / "card.json").read_text())["n_in"]


def tokenize_file(path: Path) -> int:
    from Bio import SeqIO
    from transformers import EsmTokenizer

    vocabulary = path.with_name("vocab.txt")
    vocabulary.write_text("\n".join(VOCABULARY))
    tokenizer = EsmTokenizer(str(vocabulary))
    return sum(
        len(tokenizer(str(record.seq)).input_ids) > 2 for record in islice(SeqIO.parse(path, "fasta"), TOKENIZED)
    )


ARMS = {"loratory": sample_file, "SeqIO and EsmTokenizer": tokenize_file, "whole dataset": build_whole}


def measure(arm: str, path: Path) -> tuple[float, float]:
    """CPU µs a record and peak MB of an arm in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "arm", arm, str(path)], capture_output=True, text=True, check=True
    )
    records, seconds, peak = map(float, done.stdout.splitlines()[-1].split())
    return 1e6 * seconds / records, peak


def main(sizes: list[int]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "uniref.fasta"
        write_fasta(path.with_name("few.fasta"), FEW)
        for records in sizes:
            write_fasta(path, records)
            found = {arm: measure(arm, path) for arm in ARMS}
            ratio = found["SeqIO and EsmTokenizer"][0] / found["loratory"][0]
            told = "; ".join(f"{arm} {cost:.1f} µs a record, {peak:.0f} MB" for arm, (cost, peak) in found.items())
            print(f"{records:,} records, {path.stat().st_size / 1e6:.0f} MB: {told}; ratio {ratio:.0f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["arm"]:
        run_arm, path = ARMS[sys.argv[2]], Path(sys.argv[3])
        run_arm(path.with_name("few.fasta"))
        start = process_time()
        counted = run_arm(path)
        print(counted, process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main([*map(int, sys.argv[1:])] or [1_000_000])
