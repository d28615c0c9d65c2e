"""Raw files → records in leak-proof splits, an account of every record, and the proof made anew from the files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loratory import registry
from loratory.data import splits
from loratory.data.files import atomic_write, file_sha256, write_json
from loratory.data.ledger import Ledger
from loratory.data.records import Records, RecordTable, open_records
from loratory.data.sampling import HashSample
from loratory.domains.contract import BuildModule, DatasetOptions, FilesOptions
from loratory.errors import InputError

CARD, REJECTS, AUDIT = "card.json", "rejects.tsv", "audit.json"
ROWS = 20_000  # of a row group, and of what is in memory at once
Part: TypeAlias = list[dict] | RecordTable
KEYS = pa.schema({"id": pa.string(), "group": pa.string()})  # what records of every domain have


def build_dataset(
    domain: str,
    files: FilesOptions,
    dataset: DatasetOptions,
    seed: int,
    out: Path | str,
    pretraining: Sequence[Path | str] = (),
) -> None:
    """Writes `{train,gate,valid,test}.parquet`, `card.json` and `rejects.tsv` into the folder `out`, all or nothing.

    Args:
        files, dataset: the domain's `Files` and `Dataset` options.
        pretraining: dataset folders of what bases have learnt from: test records that resemble a `train` of theirs are
            dropped.

    Raises:
        InputError: malformed input, nothing left after filtering, or splits that cannot be kept apart.
    """
    build = registry.load_module("domain", domain, "build")
    ledger = Ledger(dataset.on_error)
    records = sample_records(build.read(files, dataset, ledger), dataset.max_records, seed, build.DISTINCT, ledger)
    if not len(records):
        what = f"no record is left of {ledger.n_in}; rejected: {ledger.reason_counts()}"
        raise InputError(domain, what, expected="records that pass the filters", fix="loosen `dataset:`")
    parts: dict[str, Part] = {}
    if isinstance(records, RecordTable):
        parts |= split_table(build, records, dataset, seed, ledger)
        del records  # the parts hold all that is needed of it
    else:
        for record, group in zip(records, build.group(records, dataset)):
            record["group"] = group
        parts |= split_records(domain, build, records, dataset, seed, ledger)
    leaks = pretraining_leaks(build, parts["test"], pretraining, dataset)
    for id, source in sorted(leaks.items()):
        ledger.drop_record(domain, "-", id, "resembles_pretraining", source)
    if isinstance(parts["test"], list):
        parts["test"] = [record for record in parts["test"] if record["id"] not in leaks]
    parts |= {
        split: sample_records(parts[split], limit, seed, "", ledger) for split, limit in dataset.split_limits.items()
    }
    check_parts(domain, parts)
    ledger.check_counts(domain, sum(map(len, parts.values())), dataset.max_reject_fraction)
    with atomic_write(out) as folder:
        folder.mkdir(parents=True)
        for split, part in parts.items():
            write_records(folder / f"{split}.parquet", build, part)
        ledger.write_rejects(folder / REJECTS)
        write_json(folder / CARD, dataset_card(domain, build, files, dataset, seed, parts, ledger))


def sample_records(
    records: Iterable[dict] | RecordTable, limit: int | None, seed: int, distinct: str, ledger: Ledger
) -> Part:
    """The `limit` records with the smallest hashes of their ids, in id order, each value of `distinct` once."""
    if isinstance(records, RecordTable):
        return records if limit is None else records.sample(limit, seed, ledger)
    sample = HashSample(limit, seed, distinct, ledger)
    for record in records:
        sample.add_record(record)
    return sample.kept_records()


def split_table(
    build: BuildModule, records: RecordTable, dataset: DatasetOptions, seed: int, ledger: Ledger
) -> dict[str, Part]:
    """Splits of a table, whose domain says all that depends on them."""
    homes = build.split(records, records.column("group"), dataset, seed)
    records = records.with_splits(np.asarray([splits.SPLITS.index(home) for home in homes], np.int8), ledger)
    return {split: records.select(records.column("split") == place) for place, split in enumerate(splits.SPLITS)}


def split_records(
    domain: str, build: BuildModule, records: list[dict], dataset: DatasetOptions, seed: int, ledger: Ledger
) -> dict[str, list[dict]]:
    """Splits by group, then drops from the less protected splits whatever resembles a more protected one."""
    groups = [record["group"] for record in records]
    homes = build.split(records, groups, dataset, seed)
    parts = {split: [r for r, home in zip(records, homes) if home == split] for split in splits.SPLITS}
    if build.find_leaks and dataset.drops_similar:
        for held_out in splits.PROTECTED[:-1]:
            found = build.find_leaks(parts[held_out], less_protected(parts, held_out), dataset)
            for id, source in sorted(found.items()):
                ledger.drop_record(domain, "-", id, "resembles_held_out", f"{source} in {held_out}")
            parts = {split: [r for r in part if r["id"] not in found] for split, part in parts.items()}
    return parts


def less_protected(parts: Mapping[str, Iterable[dict]], held_out: str) -> list[dict]:
    """The records of the splits that give way to one where two records resemble each other."""
    rank = splits.PROTECTED.index(held_out)
    return [record for split in splits.PROTECTED[rank + 1 :] for record in parts[split]]


def pretraining_leaks(
    build: BuildModule, test: Any, pretraining: Sequence[Path | str], dataset: DatasetOptions
) -> dict[str, str]:
    """{id of a test record: id of the record that it resembles in what bases have learnt from}."""
    found: dict[str, str] = {}
    if build.find_leaks:
        for folder in pretraining:
            found |= build.find_leaks(read_split(folder, "train"), test, dataset)
    return found


def check_parts(domain: str, parts: Mapping[str, Sized]) -> None:
    """Raises:
    InputError: a split has no record.
    """
    for split, part in parts.items():
        if not part:
            what = f"split `{split}` is empty; { ({s: len(p) for s, p in parts.items()}) }"
            raise InputError(domain, what, expected="records in every split", fix="give more data or other fractions")


def record_schema(build: BuildModule) -> pa.Schema:
    columns = {"id": "string", "group": "string", **build.COLUMNS}
    types = {name: pa.type_for_alias(kind) if isinstance(kind, str) else kind for name, kind in columns.items()}
    return pa.schema(types)


def write_records(path: Path, build: BuildModule, records: Part) -> None:
    schema = record_schema(build)
    tables = records.batches() if isinstance(records, RecordTable) else record_tables(records, schema)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def record_tables(records: list[dict], schema: pa.Schema) -> Iterator[pa.Table]:
    """A part at a time: the records may lie on disk."""
    for at in range(0, len(records), ROWS):
        yield pa.Table.from_pylist([dict(record) for record in records[at : at + ROWS]], schema=schema)


def open_split(folder: Path | str, split: str, schema: pa.Schema | None = None) -> Records:
    """The records of one split, in id order, read as they are wanted.

    Args:
        schema: what the file must hold; without one, at least an id and a group of each record.

    Raises:
        InputError: as `open_records`.
    """
    return open_records(Path(folder) / f"{split}.parquet", schema or KEYS)


def read_split(folder: Path | str, split: str, schema: pa.Schema | None = None) -> list[dict]:
    """The records of one split as dicts, as `open_split`."""
    return [*open_split(folder, split, schema)]


def dataset_card(
    domain: str,
    build: BuildModule,
    files: FilesOptions,
    dataset: DatasetOptions,
    seed: int,
    parts: dict[str, Part],
    ledger: Ledger,
) -> dict:
    """Counts that add up, and where everything came from; the same input gives the same bytes."""
    kept = sum(map(len, parts.values()))
    return {
        "domain": domain,
        "n_in": ledger.n_in,
        "n_kept": kept,
        "n_rejected": ledger.reason_counts(),
        "n_changed": dict(sorted(ledger.n_changed.items())),
        "joined": {
            name: {
                "n_in": account.n_in,
                "n_joined": account.n_in - account.n_rejected.total(),
                "n_rejected": account.reason_counts(),
            }
            for name, account in ledger.joined.items()
        },
        "records": {split: len(part) for split, part in parts.items()},
        "groups": {split: count_groups(part) for split, part in parts.items()},
        "summary": build.summary(placed_records(parts)),
        "source": files.model_dump(mode="json"),
        "options": dataset.model_dump(mode="json"),
        "seed": seed,
    }


def count_groups(part: Part) -> int:
    return len(np.unique(part.column("group")) if isinstance(part, RecordTable) else {r["group"] for r in part})


def placed_records(parts: dict[str, Part]) -> Part:
    """All records, with a column `split`."""
    tables = [part for part in parts.values() if isinstance(part, RecordTable)]
    if tables:
        return tables[0].join(tables[1:])
    found = []
    for split, part in parts.items():
        for record in part if isinstance(part, list) else ():
            record["split"] = split
            found.append(record)
    return found


def count_shared_ids(parts: Mapping[str, Records]) -> int:
    """How many ids occur in more than one split; by their hashes, as millions of them would fill memory."""
    hashes = [np.unique(np.fromiter(map(hash, part.texts("id")), np.int64)) for part in parts.values()]
    return int(np.count_nonzero(np.unique(np.concatenate(hashes), return_counts=True)[1] > 1))


def audit_split(
    domain: str,
    folder: Path | str,
    dataset: DatasetOptions,
    out: Path | str,
    pretraining: Sequence[Path | str] = (),
    transfer: Mapping[str, Path | str] | None = None,
) -> None:
    """Proves from the written files alone that nothing of the held-out splits is in a less protected one, and counts
    what the dataset's policy allows test to share with the other splits and with what systems have learnt from.

    Args:
        pretraining: as for `build_dataset`.
        transfer: {name: dataset folder} of other entries whose systems are tested on this one. They are told apart by
            their source, not by a split, so what test shares with them is counted and nothing is dropped.

    Raises:
        InputError: as `read_split`, or a count that must be 0 is not.
    """
    build = registry.load_module("domain", domain, "build")
    parts = {split: open_split(folder, split, record_schema(build)) for split in splits.SPLITS}
    counts = build.proof(parts, dataset)
    counts["ids_in_two_splits"] = count_shared_ids(parts)
    if build.find_leaks:
        for held_out in splits.PROTECTED[:-1]:
            found = build.find_leaks(parts[held_out], less_protected(parts, held_out), dataset)
            counts[f"resembles_{held_out}"] = len(found)
        counts["resembles_pretraining"] = len(pretraining_leaks(build, parts["test"], pretraining, dataset))
    broken = {name: count for name, count in counts.items() if count and dataset.forbids(name)}
    if broken:
        raise InputError(folder, "the splits leak", str(broken), "0 everywhere", "rebuild the dataset", "leak")
    rest = Records.join([parts[split] for split in splits.SPLITS if split != "test"])
    shared = {"other splits": build.count_overlaps(parts["test"], rest, dataset)}
    learnt_from = {"pretraining": pretraining} if pretraining else {}
    learnt_from |= {f"train of {name}": [place] for name, place in (transfer or {}).items()}
    for name, places in learnt_from.items():
        records = Records.join([open_split(place, "train") for place in places])
        shared[name] = build.count_overlaps(parts["test"], records, dataset)
    files = {split: file_sha256(Path(folder) / f"{split}.parquet") for split in splits.SPLITS}
    write_json(
        out, {"domain": domain, "counts": counts, "test": len(parts["test"]), "shared": shared, "sha256": files}
    )
