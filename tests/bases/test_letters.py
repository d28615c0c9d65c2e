"""Targets of a closed alphabet: an exact distribution over sequences, scored, learnt and sampled."""

from contextlib import contextmanager
from itertools import product

import pytest
import torch
from models import causal_base, opinionated, trained_adapter

from loratory.adapters import core
from loratory.adapters.methods.lora import Method
from loratory.bases.core import IGNORED
from loratory.bases.decoding import Sampling
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.generation import StepsByShape
from loratory.mixers.methods.xlora import Mixer as XLora

LETTERS = ("A", "C", "G", ">")
LONGEST = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return causal_base(tmp_path_factory.mktemp("letters") / "base", ears=False)


KINDS = ("plain", "lora", "mixture")


@contextmanager
def put_on(base, kind: str):
    """What answers, where the base is now; taken off again."""
    if kind == "mixture":
        experts = {str(rank): trained_adapter(base.model, Method(rank=rank), rank) for rank in (2, 3)}
        mixture = opinionated(Mixture(base.model, experts, XLora())).eval()
        yield mixture
        mixture.remove_experts()
        return
    if kind == "lora":
        core.apply(base.model, trained_adapter(base.model, Method(rank=2), 1), "lora")
    yield base.model
    core.detach(base.model)


@pytest.fixture(params=KINDS)
def model(request, base):
    with put_on(base, request.param) as model:
        yield model


def of(target: str, prompt: str = "acg tta", **changes) -> Example:
    return Example(**{"id": "r", "group": "g", "prompt": prompt, "target": target, "alphabet": LETTERS} | changes)


def strings(length: int) -> list[str]:
    return ["".join(letters) for letters in product(LETTERS[:-1], repeat=length)]


def logs_by_hand(base, model, prompt: list[int]) -> torch.Tensor:
    """Log probabilities of the letters after these ids, from the whole vocabulary's logits."""
    logits = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    places = [base.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]
    return logits[places].log_softmax(-1)


@torch.no_grad()
def test_all_finished_strings_and_all_unfinished_ones_share_a_probability_of_one(base, model):
    finished = [s + ">" for length in range(LONGEST) for s in strings(length)]
    items = [base.encode(of(target)) for target in (*finished, *strings(LONGEST))]
    scores = base.nll(model, items)
    assert len(scores) == 1 + 3 + 9 + 27
    assert sum(torch.tensor(-nll).double().exp() for nll, _ in scores) == pytest.approx(1.0, abs=1e-5)
    assert [tokens for _, tokens in scores] == [len(target) for target in finished] + [LONGEST] * 27


@torch.no_grad()
def test_the_score_of_a_sequence_is_the_product_over_its_letters_from_the_models_own_logits(base, model):
    item = base.encode(of("GAC>"))
    ids = base.begin_ids + base.tokens("acg tta")
    expected = 0.0
    for letter in "GAC>":
        expected -= float(logs_by_hand(base, model, ids)[LETTERS.index(letter)])
        ids = [*ids, base.tokenizer.convert_tokens_to_ids(letter)]
    assert item.ids == ids
    [(nll, tokens)] = base.nll(model, [item])
    assert (nll, tokens) == (pytest.approx(expected, abs=1e-5), 4)
    loss, targets = base.loss(model, base.collate([item, base.encode(of("A>"))]))
    assert float(loss) == pytest.approx(expected + base.nll(model, [base.encode(of("A>"))])[0][0], abs=1e-4)
    assert targets == 6


@torch.no_grad()
def test_as_text_the_score_is_the_plain_sum_over_the_tokenizers_tokens_and_the_end(base, model):
    item = base.encode(of("GAC>", alphabet=()))
    logs = model(input_ids=torch.tensor([item.ids]), use_cache=False).logits[0].log_softmax(-1)
    target = [*base.tokenizer("GAC>", add_special_tokens=False)["input_ids"], base.tokenizer.eos_token_id]
    assert [label for label in item.labels if label != IGNORED] == target == item.ids[-len(target) :]
    expected = -sum(float(logs[len(item.ids) - len(target) + i - 1, id]) for i, id in enumerate(target))
    assert base.nll(model, [item]) == [(pytest.approx(expected, abs=1e-5), len(target))]


@torch.no_grad()
def test_what_is_written_is_letters_up_to_the_one_that_closes(base, model):
    items = [base.encode(of("", prompt)) for prompt in ("acg tta", "MKTAYIAK", "yes")]
    greedy = base.text(model, items, 6)
    for prompt, text in zip(("acg tta", "MKTAYIAK", "yes"), greedy):
        ids, expected = base.begin_ids + base.tokens(prompt), ""
        while len(expected) < 6 and not expected.endswith(">"):
            expected += LETTERS[int(logs_by_hand(base, model, ids).argmax())]
            ids = [*ids, base.tokenizer.convert_tokens_to_ids(expected[-1])]
        assert text == expected
    drawn = base.text(model, items * 20, 12, Sampling(3))
    assert all(set(text) <= set(LETTERS) and (">" in text[:-1]) is False for text in drawn)
    assert any(text.endswith(">") for text in drawn) and len(set(drawn)) > 20
    assert base.text(model, items * 20, 12, Sampling(3)) == drawn != base.text(model, items * 20, 12, Sampling(4))


@torch.no_grad()
def test_first_letters_are_drawn_as_often_as_they_are_probable(base):
    item, draws = base.encode(of("")), 2000
    drawn = base.text(base.model, [item] * draws, 1, Sampling(0))
    expected = logs_by_hand(base, base.model, item.ids).exp()
    shares = torch.tensor([drawn.count(letter) / draws for letter in LETTERS])
    assert expected.max() - expected.min() > 0.05, "the model has no preference to be seen"
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.04)  # 3.6 standard errors of a share of a half


@torch.no_grad()
@pytest.mark.parametrize("alphabet", [(), LETTERS], ids=["text", "letters"])
def test_steps_in_place_write_the_same_and_are_made_once_for_a_shape(base, model, alphabet):
    steps, made = StepsByShape(model), []
    for prompts in (("acg", "MKTAY acg"), ("yes", "no yes no yes"), ("acg tta",), ("MKTAYIAK" * 8, "acg")):
        items = [base.encode(of("", prompt, alphabet=alphabet)) for prompt in prompts]
        for sampling in (None, Sampling(5, top_p=0.9)):
            assert base.text(model, items, 9, sampling, in_place=steps) == base.text(model, items, 9, sampling)
            made.append(steps.latest)
    assert [len({id(one) for one in made[start:stop]}) for start, stop in ((0, 4), (4, 6), (6, 8))] == [1, 1, 1]
    assert made[0] is not made[4] is not made[6]
    assert {(one.rows, one.length) for one in made} == {(2, 64), (1, 64), (2, 128)}


def test_a_letter_that_is_no_token_a_strange_letter_and_mixed_alphabets_are_refused(base):
    with pytest.raises(InputError, match=r"no token of its own for a letter .yes no.*tokens: text"):
        base.encode(of("A>", alphabet=("A", "yes no", ">")))
    with pytest.raises(InputError, match=r"no token of its own for a letter .A"):
        base.letter_ids(("A", "C", "A"))
    with pytest.raises(InputError, match=r":r: a letter outside the alphabet .X"):
        base.encode(of("AXC>"))
    with pytest.raises(ValueError, match="different alphabets in one batch"):
        base.collate([base.encode(of("A>")), base.encode(of("A>", alphabet=()))])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to replay steps on")
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_replayed_steps_write_the_same_on_a_gpu(base, kind):
    base.model.cuda()
    try:
        with put_on(base, kind) as model:
            steps = StepsByShape(model)
            for prompts in (("acg", "MKTAY acg"), ("yes", "no yes no yes"), ("acg tta",)):
                items = [base.encode(of("", prompt, alphabet=())) for prompt in prompts]
                assert base.text(model, items, 20, in_place=steps) == base.text(model, items, 20)
                assert steps.latest.capture and any(steps.latest.graphs.values())
    finally:
        base.model.cpu()
