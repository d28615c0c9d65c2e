"""The loop that writes tokens: which are drawn, and when a row is done."""

from types import SimpleNamespace

import pytest
import torch
from models import llama

from loratory.bases.decoding import (
    Sampling,
    branch_cache,
    decode_batch,
    decode_steps,
    empty_cache,
    new_cache,
)
from loratory.errors import InputError

IDS = torch.arange(3 * 6).view(3, 6) % 40 + 3
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


def start(ids=IDS, mask=MASK) -> dict:
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def cached(model):
    def forward(inputs, cache):
        return model(**inputs, past_key_values=cache, use_cache=True)

    return forward


def anew(model, rows=slice(None)):
    """A model without a cache: it runs all that was written so far for each token."""
    seen = start()["input_ids"][rows][:, :0]

    def forward(inputs, cache):
        nonlocal seen
        seen = torch.cat([seen, inputs["input_ids"]], 1)
        mask = torch.nn.functional.pad(MASK[rows], (0, seen.shape[1] - MASK.shape[1]), value=1)
        return model(**start(seen, mask), use_cache=False)

    return forward


def script(*rows):
    """A model that writes these ids whatever it reads."""
    place = iter(range(len(rows[0])))

    def forward(inputs, cache):
        at = next(place)
        return SimpleNamespace(logits=torch.nn.functional.one_hot(torch.tensor([[row[at]] for row in rows]), 10))

    return forward


@pytest.mark.parametrize("sampling", [None, Sampling(3), Sampling(3, temperature=0.7, top_k=20, top_p=0.9)])
def test_a_cache_changes_no_token_greedy_or_drawn(sampling):
    model = llama()
    with_cache = decode_batch(cached(model), start(), new_cache(model), -1, 10, sampling)
    assert with_cache == decode_batch(anew(model), start(), None, -1, 10, sampling)
    assert len({tuple(row) for row in with_cache}) == 3


@pytest.mark.parametrize("sampling", [None, Sampling(3)])
def test_a_row_does_not_depend_on_when_others_are_done(sampling):
    model = llama()
    free = decode_batch(cached(model), start(), new_cache(model), -1, 12, sampling)
    end = free[1][3]
    cut = decode_batch(cached(model), start(), new_cache(model), end, 12, sampling)
    assert len(cut[1]) <= 3
    for row, full in zip(cut, free):
        assert row == (full[: full.index(end)] if end in full else full)


def test_each_of_several_ends_stops_its_row_and_is_not_written():
    assert decode_batch(script([4, 5, 6, 7], [4, 4, 4, 9]), start(IDS[:2], MASK[:2]), None, {6, 9}, 9) == [
        [4, 5],
        [4, 4, 4],
    ]


def test_the_loop_ends_with_the_last_row_and_asks_for_nothing_more():
    assert list(decode_steps(script([4, 2], [2, 2]), start(IDS[:2], MASK[:2]), None, 2, 9)) == [
        [4, None],
        [None, None],
    ]
    assert list(decode_steps(script([4], [5]), start(IDS[:2], MASK[:2]), None, 2, 1)) == [[4, 5]]


def test_what_fulfils_a_criterion_is_written_and_closes_its_row():
    def twice_four(ids, scores):
        return (ids == 4).sum(1) == 2

    found = decode_with(twice_four, script([4, 5, 4, 6], [5, 4, 5, 4]))
    assert found == [[4, 5, 4, None], [5, 4, 5, 4]]


def decode_with(stopping, forward):
    return [list(row) for row in zip(*decode_steps(forward, start(IDS[:2], MASK[:2]), None, (), 9, None, stopping))]


def test_an_unpadded_batch_is_given_no_mask_after_its_prompt():
    model, seen = llama(), []

    def forward(inputs, cache):
        seen.append(inputs.get("attention_mask") is not None)
        return cached(model)(inputs, cache)

    decode_batch(forward, start(mask=torch.ones_like(MASK)), new_cache(model), -1, 3)
    decode_batch(forward, start(), new_cache(model), -1, 3)
    assert seen == [True, False, False, True, True, True]


def probabilities(sampling, logits) -> torch.Tensor:
    """Those that tokens are drawn with, from the definitions in words."""
    found = (logits.double() / sampling.temperature).softmax(-1)
    order = found.argsort(descending=True).tolist()
    if sampling.top_k:
        order = order[: sampling.top_k]
    kept, mass, whole = [], 0.0, float(found[order].sum())
    for id in order:
        if mass >= sampling.top_p * whole:
            break
        kept.append(id)
        mass += float(found[id])
    result = torch.zeros_like(found)
    result[kept] = found[kept] / mass
    return result


@pytest.mark.parametrize(
    "sampling",
    [Sampling(0), Sampling(0, 0.5), Sampling(0, top_p=0.6), Sampling(0, top_k=3), Sampling(0, 2.0, 0.7, 5)],
)
def test_tokens_are_drawn_with_the_probabilities_of_the_definitions(sampling):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.7])
    drawn = sampling.token_draw("cpu")(logits.expand(20000, -1))
    share = drawn.bincount(minlength=7) / 20000
    expected = probabilities(sampling, logits).float()
    assert ((share > 0) == (expected > 0)).all()
    torch.testing.assert_close(share, expected, rtol=0, atol=0.015)


def test_however_cold_it_is_the_likeliest_token_is_drawn():
    logits = torch.tensor([[2.0, 60.0, 59.0, -300.0]])
    assert Sampling(0, temperature=5e-324).token_draw("cpu")(logits).tolist() == [1]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match="sampling: "):
        Sampling(0, **options)


@torch.no_grad()
def test_branches_of_a_cache_go_on_alone_and_leave_it_as_it_was():
    model, stem = llama(), empty_cache(llama())
    prompt = IDS[:1]
    model(prompt, past_key_values=stem, use_cache=True)
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in stem.layers]
    tails = torch.tensor([[7, 8, 9], [10, 11, 12]])
    found = model(tails, past_key_values=branch_cache(stem, 2), use_cache=True).logits
    expected = model(torch.cat([prompt.expand(2, -1), tails], 1)).logits[:, 6:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for (keys, values), layer in zip(kept, stem.layers):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values)
