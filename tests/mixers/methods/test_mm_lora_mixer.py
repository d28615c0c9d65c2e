"""MM-LoRA (arXiv:2410.13733)."""

import pytest
import torch
from models import continued
from small import CLOSE, IDS, alone, change, gradients, mixed

from loratory.mixers.generation import StepsByShape
from loratory.mixers.methods.mm_lora import Mixer

UP = "model.layers.1.mlp.up_proj"
HEARD = torch.tensor([[False, True, True, False, False, False, False], [False, True, True, True, True, False, False]])


@torch.no_grad()
@pytest.mark.parametrize("is_audio, expert", [(None, "text"), (HEARD & False, "text"), (HEARD | True, "audio")])
def test_one_kind_of_positions_alone_is_that_kinds_lora(is_audio, expert):
    mixture = mixed(Mixer())
    expected = alone(mixture.current_experts()[expert])(IDS).logits
    torch.testing.assert_close(mixture(input_ids=IDS, is_audio=is_audio).logits, expected, **CLOSE)


@torch.no_grad()
def test_each_position_gets_the_lora_of_its_kind():
    mixture = mixed(Mixer())
    x, found = change(mixture, UP, input_ids=IDS, is_audio=HEARD)
    heard, read = (mixture.current_experts()[name].deltas[UP].to_dense() for name in ("audio", "text"))
    expected = torch.empty_like(found)
    expected[HEARD], expected[~HEARD] = x[HEARD] @ heard.T, x[~HEARD] @ read.T
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
def test_equal_experts_make_the_kind_irrelevant():
    mixture = mixed(Mixer())
    for layer in mixture.layers.values():
        rank = len(layer.owner) // 2
        layer.A.copy_(layer.A[:rank].repeat(2, 1))
        layer.B.copy_(layer.B[:, :rank].repeat(1, 2))
    found = [mixture(input_ids=IDS, is_audio=is_audio).logits for is_audio in (HEARD, None)]
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.parametrize("is_audio", [None, HEARD])
def test_what_is_read_alone_teaches_the_heard_expert_nothing(is_audio):
    mixture = mixed(Mixer()).train()
    found = gradients(mixture, mixture(input_ids=IDS, is_audio=is_audio).logits.square().mean())
    for name, layer in mixture.layers.items():
        a, b = found[f"model.{name}.A"], found[f"model.{name}.B"]
        for expert, learns in ((0, is_audio is not None), (1, True)):
            own = layer.owner == expert
            assert bool(a[own].any()) == bool(b[:, own].any()) == learns


@torch.no_grad()
@pytest.mark.parametrize("place", ["growing", "fixed"])
@pytest.mark.parametrize("is_audio", [HEARD, HEARD | True], ids=["text behind it", "nothing behind it"])
def test_a_heard_prompt_is_continued_as_by_running_everything_anew(is_audio, place):
    mixture, ids = mixed(Mixer()), IDS
    mask = torch.ones_like(ids)
    start = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1, "is_audio": is_audio}
    cached = continued(mixture, start, 8, StepsByShape(mixture) if place == "fixed" else None)
    for step in range(8):
        token = mixture(input_ids=ids, is_audio=is_audio).logits[:, -1].argmax(-1)
        assert token.tolist() == [row[step] for row in cached]
        ids = torch.cat([ids, token[:, None]], 1)
        is_audio = torch.cat([is_audio, torch.zeros(2, 1, dtype=torch.bool)], 1)


def test_each_kind_has_its_own_rank_and_scale():
    mixer = Mixer(audio_rank=2, audio_alpha=4.0, text_rank=6, text_alpha=3.0)
    experts = mixed(mixer).current_experts()
    found = {name: {(d.rank, d.scale) for d in adapter.deltas.values()} for name, adapter in experts.items()}
    assert found == {"audio": {(2, 2.0)}, "text": {(6, 0.5)}}
