"""What a gate reads, on disk: the last hidden states of a frozen base, computed once for each of its datasets.

X-LoRA's gate (Buehler & Buehler 2024, arXiv:2402.07148) reads the base's states without experts, so each of its steps
begins with a pass that never gives anything new. Here that pass is made once, in the precision of the base, also for a
training whose own passes are bf16. A split's folder holds shards of consecutive examples, each with one tensor
`hidden [positions, width]`, and an index of their lengths.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.utils.rnn import pad_sequence

from loratory.bases.core import Base, Encoded, load_base
from loratory.data import batching
from loratory.data.files import atomic_write, file_sha256, read_json, write_json
from loratory.domains.contract import TaskOptions
from loratory.errors import InputError
from loratory.mixers.streams import TOKENS, bare_states
from loratory.provenance import features_code
from loratory.training.checkpoint import facts_digest, refusal_reason, save_sealed
from loratory.training.job import Job
from loratory.training.sweep import encode_split

INDEX, HIDDEN = "index.json", "hidden"
SHARD = 1 << 28  # bytes of a shard: what a killed job computes again, and what it holds in memory


@dataclass(frozen=True)
class StoredStates:
    """Where the states of an example are; `read_states` reads them from the file.

    Attributes:
        states: the shard's tensor as safetensors maps it.
    """

    states: Any
    start: int
    stop: int

    def read_states(self) -> torch.Tensor:
        """`[length, hidden]`."""
        return self.states[self.start : self.stop]


def write_features(
    domain: str,
    data: Path | str,
    task: TaskOptions,
    split: str,
    base_folder: Path | str,
    device: str,
    batch_tokens: int,
    checkpoints: Path | str,
    out: Path | str,
) -> None:
    """Writes a split's folder, whole. A killed job goes on after the last shard that it finished.

    Args:
        batch_tokens: most positions of a pass, padding included.

    Raises:
        InputError: the base does not read one sequence of tokens.
    """
    base = load_base(base_folder, device)
    check_stream(base)
    items = encode_split(base, domain, data, task, split)
    parts = list(split_items(items, max(1, SHARD // (base.model.config.hidden_size * base.model.dtype.itemsize))))
    index = {
        "made_of": features_digest(base, data, split, items),
        "shards": [[item.length for item in part] for part in parts],
    }
    title = f"{domain} {base.manifest['name']} {split} features"
    job = Job(device, checkpoints, title, out, code=features_code(domain), index=index, batch_tokens=batch_tokens)
    for number, part in enumerate(parts):
        path = job.folder / shard_name(number)
        reason = refusal_reason(path, job.made_with) if path.is_file() else ""
        if reason:
            print(f"{path} {reason}; it is computed anew", flush=True)
        if reason or not path.is_file():
            with atomic_write(path) as aside:
                save_sealed({HIDDEN: compute_states(base, part, batch_tokens)}, aside, made_with=job.made_with)
            print(f"{title}: shard {number + 1} of {len(parts)}", flush=True)
    for path in {*job.folder.iterdir()} - {job.folder / shard_name(number) for number in range(len(parts))}:
        path.unlink()  # of a job that cut the split otherwise
    write_json(job.folder / INDEX, index)
    with atomic_write(out) as aside:
        os.replace(job.folder, aside)
    job.remove_checkpoints()


def check_stream(base: Base) -> None:
    """Raises:
    InputError: the base does not read one sequence of tokens.
    """
    if base.model.config.is_encoder_decoder:
        what = "features are of one sequence of tokens; this base has frames and tokens"
        raise InputError(base.folder, what, base.family, "causal or encoder", "set `features: false`")


def features_digest(base: Base, data: Path | str, split: str, items: Sequence[Encoded]) -> str:
    """A digest of all that a split's states depend on: the base's weights, the data, and how these were encoded."""
    table = file_sha256(Path(data) / f"{split}.parquet")
    return facts_digest(base=base.fingerprint, dtype=base.model.dtype, data=table, ids=[item.ids for item in items])


def shard_name(number: int) -> str:
    return f"{number:05d}.safetensors"


def split_items(items: Sequence[Encoded], positions: int) -> Iterator[list[Encoded]]:
    """Consecutive items in parts of at most so many positions; a longer single item is a part of its own."""
    part: list[Encoded] = []
    filled = 0
    for item in items:
        if part and filled + item.length > positions:
            yield part
            part, filled = [], 0
        part.append(item)
        filled += item.length
    if part:
        yield part


def compute_states(base: Base, items: list[Encoded], batch_tokens: int) -> torch.Tensor:
    """The last hidden states of all items, one after another: `[positions, hidden]`."""
    found: dict[int, torch.Tensor] = {}
    for chosen in batching.batches_by_length([item.length for item in items], batch_tokens):
        inputs = base.inputs(base.collate([items[i] for i in chosen]))
        with torch.no_grad():
            hidden = bare_states(base.model, inputs, None)[TOKENS]
        found |= {i: row[: items[i].length].cpu() for i, row in zip(chosen, hidden)}
    return torch.cat([found[i] for i in range(len(items))])


def open_features(
    folder: Path | str, base: Base, data: Path | str, split: str, items: Sequence[Encoded]
) -> list[StoredStates]:
    """The states of `items`, which are all of a split, from the folder that `write_features` made.

    Raises:
        InputError: they are of another base, of other data, or of another encoding of these.
    """
    folder = Path(folder)
    index, expected = read_json(folder / INDEX), features_digest(base, data, split, items)
    if index["made_of"] != expected:
        what, fix = (
            "these features are of other data or of another base",
            "make them again (rule `compute_gate_features`)",
        )
        raise InputError(folder, what, index["made_of"], expected, fix)
    found = []
    for number, lengths in enumerate(index["shards"]):
        mapped = safe_open(folder / shard_name(number), framework="pt").get_slice(HIDDEN)
        found += [StoredStates(mapped, *ends) for ends in pairwise(accumulate(lengths, initial=0))]
    return found


def pad_states(rows: list[StoredStates], device: torch.device | str) -> torch.Tensor:
    """`[batch, longest, hidden]`, zero behind each example's end, where `Base.collate` pads too."""
    return pad_sequence([row.read_states() for row in rows], batch_first=True).to(device)
