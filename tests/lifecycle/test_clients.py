"""Which records a client has: whole groups, or drawn shares of every kind; each record once."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from loratory.data.records import table_records
from loratory.errors import InputError
from loratory.lifecycle.clients import client_examples, deal_shares

SPEAKERS = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"] * 2


class Examples:
    """Two examples of every record but the first."""

    domain = "speech"

    def __init__(self, start=0):
        ids = [f"r{start + at}" for at in range(len(SPEAKERS))]
        ages = [at % 3 for at in range(len(SPEAKERS))]
        self.records = table_records(pa.table({"id": ids, "speaker": SPEAKERS, "age": ages}))
        places = [(at, window) for at in range(len(ids)) for window in range(1 if at == 0 else 2)]
        self.places, self.items = np.array(places), [f"{ids[at]}.{window}" for at, window in places]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, at):
        return self.items[at]


def deal(by="speaker", clients=2, dirichlet=None, domains=("speech",), seed=0) -> list[list[str]]:
    parts = {domain: Examples(100 * number) for number, domain in enumerate(domains)}
    room = SimpleNamespace(name="many", seed=seed, examples=lambda domain, split: parts[domain])
    return [[*own] for own in client_examples(room, domains, by, clients, dirichlet)]


@pytest.mark.parametrize("dirichlet", [None, 0.5, 100.0])
@pytest.mark.parametrize("domains", [("speech",), ("speech", "speech-older")])
def test_every_example_is_with_one_client_and_those_of_a_record_are_together(dirichlet, domains):
    found = deal(dirichlet=dirichlet, domains=domains)
    everything = [item for own in found for item in own]
    assert sorted(everything) == sorted(i for n in range(len(domains)) for i in Examples(100 * n).items)
    records = [{item.split(".")[0] for item in own} for own in found]
    assert not records[0] & records[1] and all(records)


def test_a_group_is_with_one_client_and_clients_have_about_as_much():
    assert [len({item.split(".")[0] for item in own}) for own in deal(clients=2)] == [7, 5]
    each = deal(clients=None)
    assert [len({item.split(".")[0] for item in own}) for own in each] == [5, 3, 2, 2]
    assert len(deal(by="age", clients=None)) == 3, "of numbers too"


def test_the_smaller_the_concentration_the_less_alike_clients_are():
    values = ["x"] * 300 + ["y"] * 300

    def spread(concentration) -> float:
        dealt = deal_shares(values, 3, concentration, 0, "here")
        shares = [np.mean([values[place] == "x" for place in own]) for own in dealt]
        return float(np.std(shares))

    assert spread(0.1) > 2 * spread(100.0)
    assert deal(dirichlet=0.5) == deal(dirichlet=0.5) != deal(dirichlet=0.5, seed=1)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"by": "speakr"}, "lifecycle.many.by: unknown column of speech .speakr.; .*did you mean `speaker`"),
        ({"clients": 5}, "lifecycle.many.clients: more clients than values to deal out .5.; expected at most 4"),
        ({"clients": 13, "dirichlet": 1.0}, "lifecycle.many.dirichlet: the shares leave a client without a record"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(options, line):
    with pytest.raises(InputError, match=line):
        deal(**options)
