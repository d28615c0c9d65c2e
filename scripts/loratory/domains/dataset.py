"""Raw files → records in leak-proof splits, an account of every record, and the proof made anew from the files."""

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loratory import registry
from loratory.data import splits
from loratory.data.files import atomic_write, file_sha256, write_json
from loratory.data.ledger import Ledger
from loratory.data.records import Records, join_records, open_records, spill_records
from loratory.data.sampling import HashSample
from loratory.domains.contract import BuildModule, DatasetOptions, FilesOptions
from loratory.errors import InputError

CARD, REJECTS, AUDIT = "card.json", "rejects.tsv", "audit.json"
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
    records = gather_records(build, files, dataset, seed, ledger)
    if not len(records):
        what = f"no record is left of {ledger.n_in}; rejected: {ledger.reason_counts()}"
        raise InputError(domain, what, expected="records that pass the filters", fix="loosen `dataset:`")
    records = group_records(build, records, dataset)
    records = build.split(records, dataset, seed, ledger)
    if build.find_leaks and dataset.drops_similar:
        records = drop_similar(domain, build, records, dataset, ledger)
    parts = {split: select_splits(records, [split]) for split in splits.SPLITS}
    del records  # the parts hold all that is needed of it
    leaks = pretraining_leaks(build, parts["test"], pretraining, dataset)
    parts["test"] = drop_leaks(domain, parts["test"], leaks, "resembles_pretraining", ledger)
    parts |= {split: limit_records(parts[split], limit, seed, ledger) for split, limit in dataset.split_limits.items()}
    check_parts(domain, parts)
    ledger.check_counts(domain, sum(map(len, parts.values())), dataset.max_reject_fraction)
    with atomic_write(out) as folder:
        folder.mkdir(parents=True)
        for split, part in parts.items():
            write_records(folder / f"{split}.parquet", build, part)
        ledger.write_rejects(folder / REJECTS)
        card = dataset_card(domain, build, files, dataset, seed, parts, ledger)
        write_json(folder / CARD, card)
    print(f"note: {kept_note(card)}", flush=True)


def kept_note(card: Mapping) -> str:
    """How many records were kept, and why the others were not."""
    left = ", ".join(f"{reason} {count}" for reason, count in card["n_rejected"].items())
    return f"{card['n_kept']} of {card['n_in']} records kept" + (f"; left out: {left}" if left else "")


def gather_records(
    build: BuildModule, files: FilesOptions, dataset: DatasetOptions, seed: int, ledger: Ledger
) -> Records:
    """What a domain reads, in id order: `max_records` of it, each value of DISTINCT once."""
    found = build.read(files, dataset, ledger)
    if isinstance(found, Records):
        return limit_records(found, dataset.max_records, seed, ledger)
    sample = HashSample(dataset.max_records, seed, build.DISTINCT, ledger)
    for record in found:
        sample.add_record(record)
    return spill_records(sample.kept_records(), record_schema(build))


def group_records(build: BuildModule, records: Records, dataset: DatasetOptions) -> Records:
    """The records with their column `group`, which some domains read already."""
    return records.with_column("group", build.group(records, dataset)) if build.group else records


def limit_records(records: Records, limit: int | None, seed: int, ledger: Ledger) -> Records:
    """The `limit` records with the smallest hashes of their ids."""
    if limit is None:
        return records
    kept = records.sample(limit, seed)
    ledger.count_dropped("not_sampled", len(records) - len(kept))
    return kept


def select_splits(records: Records, names: Sequence[str]) -> Records:
    """The records of some splits."""
    homes = records.column("split").combine_chunks().dictionary_encode()
    wanted = pa.array(np.isin(homes.dictionary, names)).take(homes.indices)
    return records.select(wanted.to_numpy(zero_copy_only=False))


def less_protected(records: Records, held_out: str) -> Records:
    """The records of the splits that give way to one where two records resemble each other."""
    return select_splits(records, splits.PROTECTED[splits.PROTECTED.index(held_out) + 1 :])


def drop_similar(
    domain: str, build: BuildModule, records: Records, dataset: DatasetOptions, ledger: Ledger
) -> Records:
    """Drops from the less protected splits whatever resembles a more protected one."""
    assert build.find_leaks
    for held_out in splits.PROTECTED[:-1]:
        found = build.find_leaks(select_splits(records, [held_out]), less_protected(records, held_out), dataset)
        details = {id: f"{source} in {held_out}" for id, source in found.items()}
        records = drop_leaks(domain, records, details, "resembles_held_out", ledger)
    return records


def drop_leaks(domain: str, records: Records, found: Mapping[str, str], reason: str, ledger: Ledger) -> Records:
    """The records but those found, which go to the ledger.

    Args:
        found: {id: detail}.
    """
    if not found:
        return records
    for id, detail in sorted(found.items()):
        ledger.drop_record(domain, "-", id, reason, detail)
    return records.select(np.array([id not in found for id in records.texts("id")]))


def pretraining_leaks(
    build: BuildModule, test: Records, pretraining: Sequence[Path | str], dataset: DatasetOptions
) -> dict[str, str]:
    """{id of a test record: id of the record that it resembles in what bases have learnt from}."""
    found: dict[str, str] = {}
    if build.find_leaks:
        for folder in pretraining:
            found |= build.find_leaks(open_split(folder, "train"), test, dataset)
    return found


def check_parts(where: Path | str, parts: Mapping[str, Sized]) -> None:
    """Raises:
    InputError: a split has no record.
    """
    for split, part in parts.items():
        if not part:
            what = f"split `{split}` is empty; { ({s: len(p) for s, p in parts.items()}) }"
            raise InputError(where, what, expected="records in every split", fix="give more data or other fractions")


def record_schema(build: BuildModule) -> pa.Schema:
    columns = {"id": "string", "group": "string", **build.COLUMNS}
    types = {name: pa.type_for_alias(kind) if isinstance(kind, str) else kind for name, kind in columns.items()}
    return pa.schema(types)


def write_records(path: Path, build: BuildModule, records: Records) -> None:
    schema = record_schema(build)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in records.batches():
            writer.write_table(table.select(schema.names).cast(schema))
    pa.default_memory_pool().release_unused()


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
    parts: dict[str, Records],
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
        "groups": {split: len(splits.distinct_hashes(part, "group")) for split, part in parts.items()},
        "summary": build.summary(join_records(parts.values())),
        "source": files.model_dump(mode="json"),
        "options": dataset.model_dump(mode="json"),
        "seed": seed,
        "packages": registry.outside_packages(domain=domain),
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
    parts = {split: open_split(folder, split, record_schema(build)) for split in splits.SPLITS}
    check_parts(folder, parts)
    counts = build.proof(parts, dataset)
    counts["ids_in_two_splits"] = splits.count_shared(parts, "id")
    if build.find_leaks:
        records = join_records(part.with_column("split", [split] * len(part)) for split, part in parts.items())
        for held_out in splits.PROTECTED[:-1]:
            found = build.find_leaks(parts[held_out], less_protected(records, held_out), dataset)
            counts[f"resembles_{held_out}"] = len(found)
        counts["resembles_pretraining"] = len(pretraining_leaks(build, parts["test"], pretraining, dataset))
    broken = {name: count for name, count in counts.items() if count and dataset.forbids(name)}
    if broken:
        raise InputError(folder, "the splits leak", str(broken), "0 everywhere", "rebuild the dataset", "leak")
    rest = join_records([parts[split] for split in splits.SPLITS if split != "test"])
    shared = {"other splits": build.count_overlaps(parts["test"], rest, dataset)}
    learnt_from = {"pretraining": pretraining} if pretraining else {}
    learnt_from |= {f"train of {name}": [place] for name, place in (transfer or {}).items()}
    for name, places in learnt_from.items():
        records = join_records([open_split(place, "train") for place in places])
        shared[name] = build.count_overlaps(parts["test"], records, dataset)
    if note := shortage_note(parts["test"], "label" in record_schema(build).names):
        print(f"note: {note}", flush=True)
    files = {split: file_sha256(Path(folder) / f"{split}.parquet") for split in splits.SPLITS}
    write_json(
        out, {"domain": domain, "counts": counts, "test": len(parts["test"]), "shared": shared, "sha256": files}
    )


def shortage_note(test: Records, labelled: bool) -> str:
    """What a test split has too few of for numbers; "" if of nothing."""
    classes = test.column("label").value_counts().field("counts").to_pylist() if labelled else []
    records, groups = splits.FEWEST_RECORDS, splits.FEWEST_GROUPS
    sizes = [("records", len(test), "min_records", records)]
    sizes += [("groups of records", len(splits.distinct_hashes(test, "group")), "min_groups", groups)]
    sizes += [("records of its rarest class", min(classes), "min_records", records)] if len(classes) > 1 else []
    for noun, size, name, fewest in sizes:
        if size < fewest:
            what = f"the test split has {size} {noun}"
            return f"{what}: tables print numbers from {fewest} on, unless `evaluation.{name}` is lower"
    return ""


def audit_files(
    domain: str, train: FilesOptions, test: FilesOptions, dataset: DatasetOptions
) -> tuple[dict[str, str], dict[str, dict]]:
    """What train and test files, split by whomever, have in common; malformed records are left out.

    Returns:
        {id of a train record: id of the test record that it resembles}, and what `count_overlaps` counts.
    """
    build = registry.load_module("domain", domain, "build")
    learnt, tested = (
        group_records(build, gather_records(build, files, dataset, 0, Ledger("skip")), dataset)
        for files in (train, test)
    )
    found = build.find_leaks(tested, learnt, dataset) if build.find_leaks else {}
    return found, build.count_overlaps(tested, learnt, dataset)
