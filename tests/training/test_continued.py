"""A base that learns on is the base with its adapter, in plain weights, and a base like any other."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import causal_base, trained_adapter

from loratory.adapters import core
from loratory.adapters.deltas import Adapter, InputDependent
from loratory.adapters.methods import lora
from loratory.bases.core import load_base
from loratory.config import BaseEntry, adapter_entry
from loratory.domains.contract import Example
from loratory.domains.protein.sources import Task
from loratory.errors import InputError
from loratory.training.continued import continue_base, merge_adapter

ENTRY = BaseEntry(family="causal", continued={"base": "start", "corpus": "protein", "adapter": "stage1"})
QUESTION = Example("a", "g", "Seq=<", "MKTAYIAK>")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base to begin as, general proteins that all say the same, and where the base that learnt on lies."""
    folder = tmp_path_factory.mktemp("continued")
    causal_base(folder / "start", ears=False, precision="bf16")
    (folder / "general").mkdir()
    for split, n in (("train", 8), ("valid", 2)):
        rows = [{"id": f"{split}{i}", "group": f"{split}{i}", "sequence": "MKTAYIAK" * 3} for i in range(n)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"general/{split}.parquet")
    training = {"steps": 8, "learning_rates": [0.001, 0.02], "batch_tokens": 200}
    adapter = adapter_entry({"method": "lora", "rank": 4, "alpha": 8, "training": training})
    options = {"max_valid": 2, "device": "cpu", "checkpoints": folder / "checkpoints", "code": "x"}
    continue_base("on", ENTRY, folder / "start", adapter, folder / "general", Task(), out=folder / "on", **options)
    return folder


def nll(base) -> float:
    return base.nll(base.model, [base.encode(QUESTION)])[0][0]


def test_a_base_that_learnt_on_knows_more_and_says_what_it_began_as(places):
    start, on = load_base(places / "start", precision="fp32"), load_base(places / "on")
    assert nll(on) < nll(start) - 1
    manifest = json.loads((places / "on/base.json").read_text())
    assert (manifest["origin"], manifest["start_sha256"]) == ("continued", start.fingerprint)
    assert manifest["learning_rate"] == 0.02 and manifest["data_sha256"].keys() == {"protein"}
    assert on.tokenizer("MKT")["input_ids"] == start.tokenizer("MKT")["input_ids"]
    assert not [*(places / "checkpoints").iterdir()]


def test_an_adapter_in_the_weights_is_the_adapter_beside_them(places):
    base = load_base(places / "start", precision="fp32")
    adapter = trained_adapter(base.model, lora.Method(rank=3), 1)
    before = nll(base)
    core.apply(base.model, adapter, "here")
    beside = nll(base)
    core.detach(base.model)
    assert nll(base) == before != pytest.approx(beside, rel=1e-4)
    merge_adapter(base.model, adapter, "here")
    assert nll(base) == pytest.approx(beside, rel=1e-6)


def test_a_change_that_depends_on_the_input_is_refused_by_name(places):
    base = load_base(places / "start")
    adapter = Adapter(own={"model.layers.0": InputDependent("x", lora.Method(rank=1), {})})
    with pytest.raises(InputError, match=r"adapters\.stage1: a change that depends on the input .*model\.layers\.0"):
        merge_adapter(base.model, adapter, "adapters.stage1")
