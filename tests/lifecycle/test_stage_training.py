"""Options of an adapter's training in stages: what they take is as without them, or the config is refused."""

import pytest
import torch
from studies import changed, shipped

from loratory.adapters import core
from loratory.bases.blocks import transformer_blocks
from loratory.config import read_config
from loratory.errors import InputError
from loratory.lifecycle import federation, sequence
from loratory.lifecycle.procedures.federated import Procedure

DOMAINS = ("first", "second")
LESS_MEMORY = {"micro_batch_tokens": 12, "gradient_checkpointing": True}
SCHEDULE = {"steps": 2, "batch_tokens": 24, "learning_rates": [0.05], "save_every": 0}


def federate(room) -> federation.FederatedTraining:
    items = room.base.items
    return Procedure(local_steps=2, private_batch=2).federations(None, room, [items[:4], items[4:]])["ffa_lora"]


KINDS = {
    "joint": lambda room: sequence.JointTraining("it", room, DOMAINS),
    "replay": lambda room: sequence.ReplayTraining("it", room, DOMAINS, 4),
    "federated": federate,
}


@pytest.mark.parametrize("kind", KINDS)
def test_less_memory_is_taken_for_the_same_adapter(open_room, kind):
    def learn(**options) -> tuple[dict, int, int]:
        room = open_room("llama", training=SCHEDULE | options)
        inner, sizes, found = transformer_blocks(room.base.model)[0].mlp, [], {}
        inner.register_forward_pre_hook(
            lambda module, read: sizes.append(read[0].shape[0]) if module.training else None
        )
        for arm in KINDS[kind](room).iterate_arms():
            found = {name: p.detach().clone() for name, p in core.trainable_parameters(arm.model).items()}
        return found, len(sizes), max(sizes)

    plain, passes, rows = learn()
    again, repeated, fewer = learn(**LESS_MEMORY)
    assert (repeated, fewer) == (4 * passes, rows / 2), "two parts of every batch, each passed twice"
    for name, tensor in plain.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("training", "line"),
    [
        ({"validate_every": 1}, "adapter: a stage takes every adapter as its last step left it .validate_every: 1."),
        ({"augmentation": {"speed": [0.9, 1.1]}}, "domains: one_rate augments sound, and protein has none"),
    ],
)
def test_what_a_stage_cannot_do_is_refused(training, line):
    changes = {f"adapters.one_rate.training.{key}": value for key, value in training.items()}
    with pytest.raises(InputError, match=rf"study\.yaml: lifecycle\.\w+\.{line}"):
        read_config(changed(shipped("test"), changes), "study.yaml")
