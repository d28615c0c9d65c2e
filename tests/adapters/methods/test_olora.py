"""OLoRA (arXiv:2406.01775); against PEFT in `tests/adapters/test_offset.py`."""

import pytest
import torch
from methods.rows import Row

from loratory.adapters.methods.olora import Method

ROW = Row({"rank": 3, "alpha": 3.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_the_pair_is_what_the_first_columns_span_and_b_is_orthonormal(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tensors = Method(rank=3, alpha=3.0).initial_tensors(weight, torch.Generator())
    product = tensors["B"] @ tensors["A"]
    torch.testing.assert_close(tensors["B"].T @ tensors["B"], torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(product[:, :3], weight[:, :3], rtol=1e-4, atol=1e-5)
    span = weight[:, :3] @ torch.linalg.pinv(weight[:, :3])
    torch.testing.assert_close(product, span @ weight, rtol=1e-4, atol=1e-5)


def test_the_trained_pair_and_its_start_share_no_memory():
    tensors = Method(rank=3).initial_tensors(torch.randn(9, 5), torch.Generator())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 4
