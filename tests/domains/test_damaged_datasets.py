"""A built dataset whose files were changed: the audit proves its splits again, or says in one line what is wrong."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loratory import registry
from loratory.config import domain_options
from loratory.data.splits import SPLITS
from loratory.domains.dataset import audit_split, build_dataset
from loratory.errors import InputError

INPUTS = 120  # of each domain
ODD = ["", "\x1b[2J", "a\nb", "A" * 5000, "{x}", "<b>", "é", 0, -1, 2**62, 1e308, float("nan"), None, True, [], ["x"]]
TYPES = [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary(), pa.list_(pa.string()), pa.null()]
DOMAINS = {"text": {"n": 60}, "recsys": {}}  # those whose proof takes no search of sequences, which is slow


def change_value(table: pa.Table, rng: random.Random) -> pa.Table:
    """Another value in one cell, of the column's own type if it can be."""
    at, row = rng.randrange(table.num_columns), rng.randrange(table.num_rows)
    values, field = table.column(at).to_pylist(), table.schema.field(at)
    values[row] = rng.choice([*ODD, *values[:5]])
    try:
        return table.set_column(at, field, pa.array(values, field.type))
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        values = [None if value is None else str(value) for value in values]
        return table.set_column(at, field.name, pa.array(values, pa.string()))


def change_type(table: pa.Table, rng: random.Random) -> pa.Table:
    at = rng.randrange(table.num_columns)
    return table.set_column(at, table.column_names[at], pa.nulls(table.num_rows, rng.choice(TYPES)))


def drop_column(table: pa.Table, rng: random.Random) -> pa.Table:
    return table.remove_column(rng.randrange(table.num_columns))


def double_column(table: pa.Table, rng: random.Random) -> pa.Table:
    at = rng.randrange(table.num_columns)
    return table.append_column(table.column_names[at], table.column(at))


def drop_rows(table: pa.Table, rng: random.Random) -> pa.Table:
    return table.slice(0, rng.randrange(table.num_rows))


def double_row(table: pa.Table, rng: random.Random) -> pa.Table:
    return pa.concat_tables([table, table.slice(rng.randrange(table.num_rows), 1)])


def write_table(change: Callable[[pa.Table, random.Random], pa.Table]) -> Callable[[Path, random.Random], None]:
    return lambda path, rng: pq.write_table(change(pq.read_table(path), rng), path)


def cut_file(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip_bits(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def take_another(path: Path, rng: random.Random) -> None:
    """Another split's file in place of this one."""
    shutil.copyfile(path.with_name(f"{rng.choice([s for s in SPLITS if s != path.stem])}.parquet"), path)


CHANGES = (
    *(write_table(each) for each in (change_value, change_value, change_value, change_type, drop_column)),
    *(write_table(each) for each in (double_column, drop_rows, double_row)),
    *(cut_file, flip_bits, flip_bits, take_another),
)


def named(folder: Path, line: str) -> bool:
    return line.startswith((str(folder), *(f"{split}.parquet: " for split in SPLITS)))


@pytest.fixture(scope="module", params=DOMAINS)
def built(request, tmp_path_factory):
    """(domain, its options, the folder of a dataset of it)."""
    domain, folder = request.param, tmp_path_factory.mktemp("built")
    sources = registry.load_module("domain", domain, "sources")
    simulated = sources.Simulation(**DOMAINS[domain])
    made = registry.load_module("domain", domain, "simulate").simulate(simulated, "domain", 0, folder)
    files = sources.Files(**made).map_locations(lambda path: str(folder / path))
    dataset = domain_options(domain, "Dataset", {})
    build_dataset(domain, files, dataset, 0, folder / "data")
    return domain, dataset, folder / "data"


def test_a_changed_dataset_is_proven_again_or_refused_in_one_line(built, tmp_path):
    domain, dataset, sound = built
    outcomes: Counter[str] = Counter()
    for seed in range(INPUTS):
        rng, folder = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(sound, folder)
        rng.choice(CHANGES)(folder / f"{rng.choice(SPLITS)}.parquet", rng)
        try:
            audit_split(domain, folder, dataset, folder / "audit.json")
            outcomes["proven"] += 1
        except InputError as error:
            assert str(error).isprintable() and named(folder, str(error)) and not (folder / "audit.json").exists()
            outcomes["refused"] += 1
        shutil.rmtree(folder)
    assert outcomes["refused"] > INPUTS / 3 and outcomes["proven"] > 2, outcomes
