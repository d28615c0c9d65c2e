"""Whisper that reads 30 s whatever the clip, against Whisper that reads as much as a batch's longest clip.

    python benchmarks/whisper_window.py BASE FOLDER… [--audio-root ROOT] [--clips 40] [--max-age 15] [--silence 8]

Zero-shot transcripts of the same real clips in one process (`window: full`, `window: clip`, and `clip` with silence):
BASE is a Whisper folder or OpenAI's `.pt`, FOLDERs are Kaldi's. Word error rate as in the tables, and seconds from
features to text in batches of as many positions; clips are read and their features computed before.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402

from loratory.bases.core import load_base  # noqa: E402
from loratory.config import BaseEntry  # noqa: E402
from loratory.data.batching import batches_by_length  # noqa: E402
from loratory.data.ledger import Ledger  # noqa: E402
from loratory.data.splits import sample_by_hash  # noqa: E402
from loratory.domains.speech import build, metrics  # noqa: E402
from loratory.domains.speech.sources import Dataset, Files, Task  # noqa: E402
from loratory.domains.speech.task import examples  # noqa: E402
from loratory.training.prepare import prepare_base  # noqa: E402

LIMIT = 60  # tokens of a transcript


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("folder", nargs="+")
    parser.add_argument("--audio-root", default="")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--max-age", type=int)
    parser.add_argument("--silence", type=float, default=8, help="seconds after the clip")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    return parser.parse_args()


def clips(options) -> list[dict]:
    files = Files(folders=options.folder, audio_root=options.audio_root)
    found = list(build.read(files, Dataset(max_age=options.max_age), Ledger()))
    return [record | {"group": record["speaker"]} for record in sample_by_hash(found, options.clips, 0)]


def transcripts(base, items, batch_tokens: int) -> list[str]:
    texts = [""] * len(items)
    for batch in batches_by_length([item.length for item in items], batch_tokens):
        for i, text in zip(batch, base.text(base.model, [items[i] for i in batch], LIMIT)):
            texts[i] = text
    return texts


def measure(asked: dict, options, records) -> tuple[float, float, float]:
    """Word error rate, seconds, and seconds of CPU."""
    with TemporaryDirectory() as scratch:
        entry = BaseEntry(family="whisper", path=options.base, whisper=asked)
        prepare_base("whisper", entry, {}, {}, None, "cpu", Path(scratch, "checkpoints"), Path(scratch, "base"))
        base = load_base(Path(scratch, "base"))
        items = [base.encode(example) for example in examples(records, Task(), "whisper")]
        base.collate(items)  # features are remembered
        started = perf_counter(), process_time()
        texts = transcripts(base, items, options.batch_tokens)
        seconds = perf_counter() - started[0], process_time() - started[1]
    rows = [{"id": r["id"], "reference": r["text"], "text": text} for r, text in zip(records, texts)]
    wer = next(metric for metric in metrics.METRICS if metric.name == "wer")
    return wer.compute_value(metrics.columns(rows, records, Task())), *seconds


def main():
    options = arguments()
    records = clips(options)
    longest = max(record["seconds"] for record in records)
    total = sum(record["seconds"] for record in records)
    print(f"{len(records)} clips, {total / len(records):.1f} s each, {longest:.1f} s at most; ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| window | WER | seconds | CPU seconds | full over it |\n|---|---|---|---|---|")
    full = None
    silent = {"window": "clip", "silence": options.silence}
    for asked in ({"window": "full"}, {"window": "clip"}, silent):
        wer, seconds, cpu = measure(asked, options, records)
        full = full or cpu
        print(
            f"| {', '.join(map(str, asked.values()))} | {wer:.1%} | {seconds:.1f} | {cpu:.1f} | {full / cpu:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
