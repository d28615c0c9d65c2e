"""QA-LoRA (arXiv:2309.14717), against PEFT's group-wise pooling."""

import peft
import pytest
import torch
from families import FAMILIES, begin
from methods.rows import Row
from peft.tuners.lora import layer as peft_layers
from peft.tuners.lora.variants import QALoraLinearVariant
from torch import nn

from loratory.adapters.methods.qalora import Method
from loratory.errors import InputError

ROW = Row(
    {"rank": 3, "alpha": 6.0, "group_size": 8},
    lambda shapes, model: sum(3 * (out + inner // 8) for out, inner in shapes),
)


def tensors_of(method, out, inner):
    generator = torch.Generator().manual_seed(0)
    tensors = method.initial_tensors(torch.zeros(out, inner), generator)
    return tensors | {"B": torch.randn(out, method.rank, generator=generator)}


@pytest.mark.parametrize("shape", [(5, 24), (2, 5, 24)])
def test_the_output_is_pefts(shape):
    """Its layer is reached through quantised layers alone; here it is made by hand around a plain one."""
    method = Method(rank=3, alpha=6.0, group_size=4)
    tensors, x = tensors_of(method, 7, 24), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["it"])
    theirs = peft_layers.Linear(nn.Linear(24, 7), "default", config, r=3, lora_alpha=6)
    QALoraLinearVariant.init(theirs, "default", peft.LoraConfig(use_qalora=True, qalora_group_size=4))
    assert theirs.lora_A["default"].weight.shape == tensors["A"].shape
    theirs.lora_A["default"].weight.data.copy_(tensors["A"])
    theirs.lora_B["default"].weight.data.copy_(tensors["B"])
    result = QALoraLinearVariant.forward(theirs, "default", x, torch.zeros(*shape[:-1], 7))
    torch.testing.assert_close(method.forward(x, tensors, True), result, rtol=1e-4, atol=1e-4)


def test_a_starts_like_a_linear_layer_of_pooled_inputs():
    a = Method(rank=64, group_size=4).initial_tensors(torch.zeros(7, 100), torch.Generator().manual_seed(0))["A"]
    assert a.shape == (64, 25)
    assert 0.19 < a.abs().max() <= 0.2  # 1 / √25


def test_the_stored_change_is_a_plain_lora_that_is_constant_in_each_group():
    method = Method(rank=3, alpha=6.0, group_size=4)
    tensors, x = tensors_of(method, 7, 24), torch.randn(5, 24)
    delta = method.weight_delta(tensors, torch.zeros(7, 24))
    assert delta.rank == 3
    torch.testing.assert_close(delta.added_output(x), method.forward(x, tensors, False), rtol=1e-4, atol=1e-4)
    groups = delta.to_dense().view(7, 6, 4)
    assert torch.equal(groups, groups[..., :1].expand_as(groups))


def test_a_weight_quantised_in_the_same_groups_takes_it_up_in_its_zero_points():
    method, weight = Method(rank=3, alpha=6.0, group_size=4), torch.randn(7, 24)

    def quantised(w):
        """(integers, zero point and step of each row and group), from the least to the largest number in 4 bits."""
        groups = w.view(7, 6, 4)
        zero = groups.amin(-1, keepdim=True)
        step = (groups.amax(-1, keepdim=True) - zero) / 15
        return ((groups - zero) / step).round(), zero, step

    change = method.weight_delta(tensors_of(method, 7, 24), weight).to_dense()
    (integers, zero, step), merged = quantised(weight), quantised(weight + change)
    assert torch.equal(integers, merged[0])
    torch.testing.assert_close(merged[2], step, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(merged[1] - zero, change.view(7, 6, 4)[..., :1], rtol=1e-3, atol=1e-4)


def test_groups_that_do_not_divide_the_inputs_are_refused_with_the_layer():
    with pytest.raises(InputError, match=r"q_proj: the groups do not divide the layer's inputs \(5\).*divisor of 32"):
        begin(FAMILIES["llama"](), Method(group_size=5))
