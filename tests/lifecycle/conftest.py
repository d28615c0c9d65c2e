import pytest
from families import FAMILIES, Toy
from models import llama

from loratory.config import adapter_entry
from loratory.lifecycle.room import Room
from loratory.training.job import Job

GROUPED = {"grouped": lambda: Toy(lambda: llama(60, num_attention_heads=8, num_key_value_heads=4), 14)}


@pytest.fixture
def open_room(tmp_path):
    """(family, options of the adapter and its training) -> the room of a stage on a tiny base."""

    def make(family="grouped", steps=6, save_every=0, folder="made", **adapter):
        base = (FAMILIES | GROUPED)[family]()
        base.folder = "toy"
        schedule = {"steps": steps, "batch_tokens": 24, "learning_rates": [0.05], "save_every": save_every}
        entry = adapter_entry({"method": "lora", "rank": 2, "training": schedule} | adapter)
        job = lambda title: Job("cpu", tmp_path / folder, title)  # noqa: E731
        return Room("smaller", base, entry, 0, {}, {}, job, lambda domain, split: base.items)

    return make
