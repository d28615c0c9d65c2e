"""Every arm of `serve_throughput` answers the same requests with the same texts, and the table has them all."""

import pytest
from models import causal_base, trained_adapter

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.data.files import read_json
from loratory.errors import InputError
from loratory.evaluation.throughput import measure_arms
from loratory.reporting.throughput import write_throughput_table

ASKED = {"requests": 6, "prompt_tokens": 9, "tokens": 5, "device": "cpu"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A base and adapters on it: two of low rank, one of a whole weight."""
    root = tmp_path_factory.mktemp("study")
    base, folders = causal_base(root / "base", ears=False), {}
    for seed in range(2):
        folders[f"lora{seed}@text"] = root / f"lora{seed}"
        adapter = trained_adapter(base.model, Method(rank=2 + seed), seed)
        deltas.save_adapter(root / f"lora{seed}", adapter, causal=True)
    name = "model.layers.0.mlp.down_proj.weight"
    whole = deltas.Adapter(dense={name: base.model.get_parameter(name).detach() * 0.1})
    folders["whole@text"] = root / "whole"
    deltas.save_adapter(root / "whole", whole, causal=True)
    return base.folder, folders


def test_all_arms_write_the_same_and_stand_in_the_table(study, tmp_path, capsys):
    folder, folders = study
    for count in (1, 5):
        measure_arms(folder, folders, count, tmp_path / f"{count}.json", **ASKED, most_peft=1)
    assert "whole@text is left out: the change of" in capsys.readouterr().out
    one, five = (read_json(tmp_path / f"{count}.json") for count in (1, 5))
    assert [arm["arm"] for arm in one["arms"]] == ["shared batches", "one at a time", "PEFT"]
    assert [arm["arm"] for arm in five["arms"]] == ["shared batches", "one at a time"], (
        "PEFT was asked for one at most"
    )
    assert all(arm["equal"] == ASKED["requests"] for found in (one, five) for arm in found["arms"])
    assert five["distinct"] == 2 and five["arms"][0]["adapter_bytes"] > one["arms"][0]["adapter_bytes"]
    assert all(0 < arm["first_token"] <= arm["first_token_p95"] for arm in one["arms"])
    write_throughput_table([tmp_path / "1.json", tmp_path / "5.json"], tmp_path / "table", about="tiny")
    table = (tmp_path / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == "adapters" and rows[2:] == ["1", "5"]
    assert "Base: tiny" in table and "5: one at a time 6" in table


def test_adapters_of_which_none_shares_batches_are_refused(study, tmp_path):
    folder, folders = study
    alone = {"whole@text": folders["whole@text"]}
    with pytest.raises(InputError, match=r"no adapter on this base can share batches \(whole@text\)"):
        measure_arms(folder, alone, 2, tmp_path / "2.json", **ASKED, most_peft=1)
    assert not (tmp_path / "2.json").exists()
