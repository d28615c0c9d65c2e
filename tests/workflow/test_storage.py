"""A study whose files lie in a storage, and whose jobs see copies of what their rules name."""

import shutil

import pytest
from studies import succeeded
from test_whole import STUDY

pytestmark = pytest.mark.whole


def test_a_study_in_a_storage_without_a_shared_disk_is_made_of_copies(tmp_path):
    pytest.importorskip("snakemake_storage_plugin_fs", reason="needs snakemake-storage-plugin-fs")
    if not shutil.which("rsync"):
        pytest.skip("snakemake-storage-plugin-fs needs rsync")
    store, machine = tmp_path / "store", tmp_path / "machine"
    machine.mkdir()
    storage = ["--default-storage-provider", "fs", "--default-storage-prefix", str(store), "--shared-fs-usage", "none"]
    succeeded(machine, STUDY, "--cores", "2", *storage, "--", "results/tables/lncrna.mini_bert.md")
    assert (store / "results/tables/lncrna.mini_bert.md").is_file()
    assert (store / "results/bases/mini_bert/model.safetensors").is_file()
    assert (store / "results/adapters/lncrna/mini_bert/lora/seed0/adapter_model.safetensors").is_file()
    assert not [path for path in (machine / "results").rglob("*") if path.is_file()]
