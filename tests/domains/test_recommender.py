"""The sequential recommender: what it learns, what it does not know, and what it must not depend on."""

import numpy as np
import pytest
import torch

from loratory.data.batching import pad_contexts
from loratory.domains.dataset import build_dataset, read_split
from loratory.domains.recommender import (
    BUCKETS,
    WIDTH,
    DeepInterest,
    fit_recommender,
    like_probabilities,
    nearest_events,
)
from loratory.domains.recsys import task
from loratory.domains.recsys.context import item_key
from loratory.domains.recsys.metrics import rating_auc
from loratory.domains.recsys.simulate import simulate
from loratory.domains.recsys.sources import Dataset, Files, Simulation, Task
from loratory.domains.scores import auc
from loratory.evaluation.bootstrap import bootstrap_distributions, percentile_interval, row_statistic
from loratory.evaluation.controls import exchange_users

KINDS = [[item_key(f"{kind} {n}") for n in range(12)] for kind in "ab"]


def log(users, seed):
    """Users who like one of two kinds of items: their stars tell which."""
    draw, contexts, labels = np.random.default_rng(seed), [], []
    for _ in range(users):
        likes, asked, n = draw.integers(2), draw.integers(2), draw.integers(3, 9)
        past = [(KINDS[kind][draw.integers(12)], 450 if kind == likes else 150) for kind in draw.integers(2, size=n)]
        contexts.append(((KINDS[asked][draw.integers(12)], 0), *past))
        labels.append(int(asked == likes))
    return contexts, labels


@pytest.fixture(scope="module")
def learnt() -> DeepInterest:
    return fit_recommender(*log(600, 0), seed=0)


def test_it_learns_who_likes_what_from_the_past_alone(learnt):
    contexts, labels = log(400, 1)
    assert auc(labels, like_probabilities(learnt, contexts)) > 0.85
    strange = [(context[0], *other[1:]) for context, other in zip(contexts, contexts[1:] + contexts[:1])]
    assert abs(auc(labels, like_probabilities(learnt, strange)) - 0.5) < 0.1


def test_the_same_seed_learns_the_same_and_moves_no_other_random_numbers():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (fit_recommender(*log(40, 0), seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["items.weight"], other["items.weight"])


@torch.no_grad()
def test_a_user_does_not_depend_on_the_batch_or_its_padding(learnt):
    contexts = log(5, 2)[0]
    batch = learnt.user_vectors(torch.from_numpy(pad_contexts(contexts)))
    for context, row in zip(contexts, batch):
        torch.testing.assert_close(learnt.user_vectors(torch.from_numpy(pad_contexts([context])))[0], row)


@torch.no_grad()
def test_who_asks_is_read_without_what_is_asked_about_and_without_padding(learnt):
    context = torch.from_numpy(pad_contexts(log(6, 2)[0]))
    other = context.clone()
    other[:, 0, 0] = context[:, 0, 0].roll(1)
    found = learnt.past_vectors(context)
    assert torch.equal(learnt.past_vectors(other), found)
    torch.testing.assert_close(learnt.past_vectors(torch.nn.functional.pad(context, (0, 0, 0, 5))), found)
    assert not torch.equal(learnt.past_vectors(context.roll(1, 0)), found)


def test_a_search_finds_the_events_most_like_the_item_and_of_equals_the_latest():
    target = torch.tensor([[[1.0, 0.0]]])
    past = torch.tensor([[[0.2, 9.0], [0.9, 0.0], [0.5, 3.0], [0.9, 1.0], [5.0, 0.0]]])
    there = torch.tensor([[True, True, True, True, False]])

    def found(item, n):
        return nearest_events(item, past, there, n)[0].nonzero()[:, 0].tolist()

    assert (found(target, 1), found(target, 3)) == ([3], [1, 2, 3])
    assert found(torch.zeros_like(target), 2) == [2, 3], "an item that nobody knows is like none"


@torch.no_grad()
def test_a_search_attends_to_what_it_finds_alone_and_one_of_all_events_is_no_search(learnt):
    contexts = log(20, 2)[0]
    search = DeepInterest(searched=99).eval()
    search.load_state_dict(learnt.state_dict())
    assert like_probabilities(search, contexts) == like_probabilities(learnt, contexts)
    search.searched, search.body = 1, torch.nn.Identity()
    context = torch.from_numpy(pad_contexts(contexts))
    target, past = search.item_vectors(context[:, :1, 0]), search.item_vectors(context[:, 1:, 0])
    nearest = nearest_events(target, past, context[:, 1:, 0] > 0, 1)
    interest = search.user_vectors(context)[:, WIDTH : 2 * WIDTH]
    torch.testing.assert_close(interest, past[nearest])


@torch.no_grad()
def test_items_that_were_not_learnt_from_are_all_alike_and_keys_of_63_bits_have_two_rows(learnt):
    new = [item_key("unheard of"), item_key("never seen")]
    assert not learnt.item_vectors(torch.tensor(new)).any() and learnt.item_vectors(torch.tensor(KINDS[0])).any()
    past = log(1, 3)[0][0][1:]
    one, other = like_probabilities(learnt, [((key, 0), *past) for key in new])
    assert one == pytest.approx(other)
    assert int(learnt.known.sum()) <= 48 < BUCKETS


@pytest.mark.parametrize("labels", [[1] * 8, [0] * 8])
def test_one_class_and_a_past_without_events_still_give_probabilities(labels):
    model = fit_recommender([((KINDS[0][i], 0),) for i in range(8)], labels, 0)
    found = like_probabilities(model, [((KINDS[0][0], 0),), ()])
    assert all(0 < p < 1 for p in found) and like_probabilities(model, []) == []


def simulated_gain(folder, taste: float) -> tuple[float, float, float]:
    """How much better users are told from their own past than from another's, by AUC, with its 95 % interval."""
    files = simulate(Simulation(users=120, items=80, quality=0, taste=taste), "domain", 0, folder / "raw")
    paths = {name: str(folder / "raw" / path) for name, path in files.items()}
    build_dataset("recsys", Files(**paths), Dataset(max_history=30), 0, folder / "built")
    train, test = (
        task.examples(read_split(folder / "built", s), Task(history=1), "causal") for s in ("train", "test")
    )
    model = fit_recommender([e.context for e in train], [e.choices.index(e.target) for e in train], 0)
    columns = [
        {"label": np.array([e.choices.index(e.target) for e in asked]), "p": np.array(probabilities)}
        for asked in (test, exchange_users(test))
        for probabilities in [like_probabilities(model, [e.context for e in asked])]
    ]
    statistics = {place: row_statistic(rating_auc, [each]) for place, each in enumerate(columns)}
    draws = bootstrap_distributions(statistics, [e.group for e in test], 300, 0)
    own, other = map(rating_auc, columns)
    return own - other, *percentile_interval(draws[0] - draws[1])


def test_a_past_is_worth_something_where_users_differ_and_nothing_where_they_are_alike(tmp_path):
    for name in ("differ", "alike"):
        (tmp_path / name / "raw").mkdir(parents=True)
    gain, low, _ = simulated_gain(tmp_path / "differ", 1.0)
    assert gain > 0.05 and low > 0
    gain, low, high = simulated_gain(tmp_path / "alike", 0.0)
    assert abs(gain) < 0.03 and low <= 0 <= high
