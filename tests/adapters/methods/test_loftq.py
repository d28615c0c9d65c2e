"""LoftQ (arXiv:2310.08659). PEFT quantises through bitsandbytes on a GPU alone; its factors are compared."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row
from peft.utils.loftq_utils import _low_rank_decomposition

from loratory.adapters import core
from loratory.adapters.methods.loftq import Method, quantisation_levels, quantised_tensors
from loratory.errors import InputError

ROW = Row(
    {"rank": 3, "alpha": 3.0},
    lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes),
    starts="elsewhere",
)
# The table of the QLoRA paper (arXiv:2305.14314, appendix E), rounded.
NF4 = [-1.0, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0.0]
NF4 += [0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1.0]


def weight(out=20, inner=16, seed=0):
    return torch.randn(out, inner, generator=torch.Generator().manual_seed(seed))


def start(w, **options):
    method = Method(**{"rank": 3, "alpha": 3.0} | options)
    tensors = method.initial_tensors(w, torch.Generator())
    return method, tensors, method.quantised_weight(tensors, w.shape)


def test_the_levels_of_four_bits_are_those_of_nf4():
    torch.testing.assert_close(quantisation_levels(4), torch.tensor(NF4), atol=6e-6, rtol=0)


def test_each_block_of_four_bits_is_its_largest_magnitude_times_the_nearest_levels():
    w = weight(9, 15)  # the last of three blocks has 7 numbers
    _, _, quantised = start(w, iterations=1)
    for block, found in zip(w.flatten().split(64), quantised.flatten().split(64)):
        scale, levels = block.abs().max(), torch.tensor(NF4)
        nearest = (block[:, None] / scale - levels).abs().argmin(1)
        torch.testing.assert_close(found, scale * levels[nearest], atol=2e-5, rtol=0)


def test_each_row_of_eight_bits_is_rounded_to_a_127th_of_its_largest_magnitude():
    w = weight()
    _, _, quantised = start(w, bits=8)
    scale = w.abs().amax(1, keepdim=True)
    torch.testing.assert_close(quantised, (127 * w / scale).round() / 127 * scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_of_levels_is_kept_and_one_of_zeros_stays_zero(bits):
    levels = quantisation_levels(bits)[None]
    for exact in (levels, torch.zeros(3, 70)):
        method, tensors = Method(bits=bits), quantised_tensors(exact, bits)
        assert torch.equal(method.quantised_weight(tensors, exact.shape), exact)


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_factors_are_pefts_of_what_quantisation_lost(iterations):
    w, low_rank = weight(), torch.zeros(20, 16)
    for _ in range(iterations):
        method = Method(rank=3, alpha=3.0)
        lost = w - method.quantised_weight(quantised_tensors(w - low_rank, 4), w.shape)
        theirs = _low_rank_decomposition(lost, reduced_rank=3)
        low_rank = theirs["L"] @ theirs["R"]
    _, tensors, quantised = start(w, iterations=iterations)
    torch.testing.assert_close(tensors["B"] @ tensors["A"], low_rank, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quantised, w - lost, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["A"].norm(dim=1), theirs["R"].norm(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [3.0, 12.0])
def test_whatever_alpha_the_start_is_nearer_to_the_weight_than_its_quantisation(alpha):
    w = weight(48, 32)
    method, tensors, quantised = start(w, rank=8, alpha=alpha)
    started = w + method.weight_delta(tensors, w).to_dense()
    torch.testing.assert_close((w - started).norm(), torch.linalg.svdvals(w - quantised)[8:].norm())
    assert (w - started).norm() < 0.9 * (w - quantised).norm()


def test_more_iterations_come_nearer():
    w = weight(64, 48)
    errors = []
    for iterations in (1, 5):
        method, tensors, _ = start(w, rank=8, alpha=8.0, iterations=iterations)
        errors.append(float(method.weight_delta(tensors, w).to_dense().norm()))
    assert errors[1] < errors[0]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_stored_change_gives_the_quantised_bases_function_on_the_original_weights(family, tmp_path):
    toy = FAMILIES[family]()
    with torch.enable_grad():
        session = train(toy, Method(rank=3, alpha=3.0), tmp_path)
    trained, adapter = toy.output(), core.export(toy.model, (), {})
    for layer in session.layers.values():
        quantised = layer.method.quantised_weight(layer.tensors, layer.weight.shape)
        pair = layer.method.scale * layer.tensors["B"] @ layer.tensors["A"]
        torch.testing.assert_close(layer.weight + layer.weight_delta().to_dense(), quantised + pair)
    core.detach(toy.model)
    core.apply(toy.model, adapter, "a")
    torch.testing.assert_close(toy.output(), trained, rtol=1e-4, atol=2e-5)


def test_other_bits_and_ranks_beyond_the_layer_are_refused():
    with pytest.raises(ValueError, match="bits"):
        Method(bits=2)
    with pytest.raises(InputError, match=r"q_proj: the rank exceeds the layer's size \(40\)"):
        begin(FAMILIES["llama"](), Method(rank=40))
