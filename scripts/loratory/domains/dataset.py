"""Raw files → records in leak-proof splits, an account of every record, and the proof made anew from the files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loratory import registry
from loratory.data import splits
from loratory.data.files import atomic_write, file_sha256, write_json
from loratory.data.ledger import Ledger
from loratory.data.sampling import HashSample
from loratory.data.store import RecordStore
from loratory.domains.contract import BuildModule, DatasetOptions, FilesOptions
from loratory.errors import InputError

CARD, REJECTS, AUDIT = "card.json", "rejects.tsv", "audit.json"
ROWS = 20_000  # of a row group, and of what is in memory at once
REBUILD = "delete the dataset's folder and run again"
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
    records = read_sample(build, files, dataset, seed, ledger)
    if not records:
        what = f"no record is left of {ledger.n_in}; rejected: {ledger.reason_counts()}"
        raise InputError(domain, what, expected="records that pass the filters", fix="loosen `dataset:`")
    for record, group in zip(records, build.group(records, dataset)):
        record["group"] = group
    parts = split_records(domain, build, records, dataset, seed, ledger)
    for id, source in sorted(pretraining_leaks(build, parts["test"], pretraining, dataset).items()):
        ledger.drop_record(domain, "-", id, "resembles_pretraining", source)
        parts["test"] = [record for record in parts["test"] if record["id"] != id]
    check_parts(domain, parts)
    ledger.check_counts(domain, sum(map(len, parts.values())), dataset.max_reject_fraction)
    with atomic_write(out) as folder:
        folder.mkdir(parents=True)
        for split, part in parts.items():
            write_records(folder / f"{split}.parquet", build, part)
        ledger.write_rejects(folder / REJECTS)
        write_json(folder / CARD, dataset_card(domain, build, files, dataset, seed, parts, ledger))


def read_sample(
    build: BuildModule, files: FilesOptions, dataset: DatasetOptions, seed: int, ledger: Ledger
) -> list[Any]:
    """The records that are kept, in id order; they lie on disk, and are read as dicts are."""
    sample = HashSample(dataset.max_records, seed, build.DISTINCT, ledger)
    for record in build.read(files, dataset, ledger):
        sample.add_record(record)
    return sample.kept_records()


def less_protected(parts: dict[str, list[dict]], held_out: str) -> list[dict]:
    """The records of the splits that give way to one where two records resemble each other."""
    rank = splits.PROTECTED.index(held_out)
    return [record for split in splits.PROTECTED[rank + 1 :] for record in parts[split]]


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


def pretraining_leaks(
    build: BuildModule, test: list[dict], pretraining: Sequence[Path | str], dataset: DatasetOptions
) -> dict[str, str]:
    """{id of a test record: id of the record that it resembles in what bases have learnt from}."""
    found: dict[str, str] = {}
    if build.find_leaks:
        for folder in pretraining:
            found |= build.find_leaks(read_split(folder, "train", store=RecordStore()), test, dataset)
    return found


def check_parts(domain: str, parts: dict[str, list[dict]]) -> None:
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


def write_records(path: Path, build: BuildModule, records: list[dict]) -> None:
    schema = record_schema(build)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for at in range(0, len(records), ROWS):  # a part at a time: the records may lie on disk
            rows = [dict(record) for record in records[at : at + ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def read_split(
    folder: Path | str, split: str, schema: pa.Schema | None = None, store: RecordStore | None = None
) -> list[Any]:
    """The records of one split, as dicts, in id order.

    Args:
        schema: what the file must hold; without one, at least an id and a group of each record.
        store: where the records then lie, instead of in memory; they are read as dicts are.

    Raises:
        InputError: no such file, a damaged one, other columns or types, or a value is missing.
    """
    path = Path(folder) / f"{split}.parquet"
    if not path.is_file():
        raise InputError(path, "no such file", fix=REBUILD)
    with name_damage(path):
        with pa.OSFile(str(path)) as stream:  # of a file of Python's own, arrow's threads may outlive the interpreter
            table = pq.read_table(stream, page_checksum_verification=True)
        table.validate(full=True)
    for column in schema or KEYS:
        at = table.schema.get_field_index(column.name)
        if at < 0 or table.schema.field(at).type != column.type:
            given = "none" if at < 0 else table.schema.field(at).type
            raise InputError(path, f"column `{column.name}` is not as built", str(given), str(column.type), REBUILD)
        if table.column(at).null_count:
            raise InputError(path, f"column `{column.name}` has records without a value", fix=REBUILD)
    with name_damage(path):
        if store is None:
            return table.to_pylist()
        return [store.keep_record(row) for batch in table.to_batches(ROWS) for row in batch.to_pylist()]


@contextmanager
def name_damage(path: Path) -> Iterator[None]:
    """Raises: InputError for whatever pyarrow says of a damaged file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(path, "the file is damaged", str(error), "a whole Parquet file", REBUILD) from None


def dataset_card(
    domain: str,
    build: BuildModule,
    files: FilesOptions,
    dataset: DatasetOptions,
    seed: int,
    parts: dict[str, list[dict]],
    ledger: Ledger,
) -> dict:
    """Counts that add up, and where everything came from; the same input gives the same bytes."""
    kept = sum(map(len, parts.values()))
    for split, part in parts.items():
        for record in part:
            record["split"] = split
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
        "groups": {split: len({r["group"] for r in part}) for split, part in parts.items()},
        "summary": build.summary([record for part in parts.values() for record in part]),
        "source": files.model_dump(mode="json"),
        "options": dataset.model_dump(mode="json"),
        "seed": seed,
    }


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
    store, schema = RecordStore(), record_schema(build)
    parts = {split: read_split(folder, split, schema, store) for split in splits.SPLITS}
    counts = build.proof(parts, dataset)
    counts["ids_in_two_splits"] = splits.count_shared(parts, "id")
    if build.find_leaks:
        for held_out in splits.PROTECTED[:-1]:
            found = build.find_leaks(parts[held_out], less_protected(parts, held_out), dataset)
            counts[f"resembles_{held_out}"] = len(found)
        counts["resembles_pretraining"] = len(pretraining_leaks(build, parts["test"], pretraining, dataset))
    broken = {name: count for name, count in counts.items() if count and dataset.forbids(name)}
    if broken:
        raise InputError(folder, "the splits leak", str(broken), "0 everywhere", "rebuild the dataset", "leak")
    shared = {"other splits": build.count_overlaps(parts["test"], less_protected(parts, "test"), dataset)}
    learnt_from = {"pretraining": pretraining} if pretraining else {}
    learnt_from |= {f"train of {name}": [place] for name, place in (transfer or {}).items()}
    for name, places in learnt_from.items():
        records = [record for place in places for record in read_split(place, "train", store=store)]
        shared[name] = build.count_overlaps(parts["test"], records, dataset)
    files = {split: file_sha256(Path(folder) / f"{split}.parquet") for split in splits.SPLITS}
    write_json(
        out, {"domain": domain, "counts": counts, "test": len(parts["test"]), "shared": shared, "sha256": files}
    )
