"""Admission: nothing that runs is ever short of memory, everything is answered, and in the order it came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.serving.scheduling import PATIENCE, Request, Scheduler, peak_tokens

PAGES, TOKEN_PAGES, ADAPTER_PAGES = 400, 2, 30
asked = st.tuples(st.integers(1, 20), st.sampled_from([None, "a", "b", "c", "d"]), st.integers(1, 20))


def as_request(prompt: int, adapter: str | None, limit: int) -> Request:
    return Request([0] * prompt, adapter, limit)


def scheduler_of(most_adapters: int = 9, most_rows: int = 99) -> Scheduler:
    return Scheduler(PAGES, TOKEN_PAGES, lambda name: ADAPTER_PAGES * (name is not None), most_adapters, most_rows)


def step(scheduler: Scheduler) -> list[Request]:
    """Every request that runs writes a token; those that have written all end."""
    for request in scheduler.running:
        request.written.append(0)
    ended = [request for request in scheduler.running if not request.left]
    for request in ended:
        scheduler.end(request)
    return ended


@given(st.lists(asked, max_size=8))
def test_the_peak_is_what_is_held_at_most_if_all_write_all_that_they_may(shapes):
    requests = [as_request(*shape) for shape in shapes]
    foretold, most = peak_tokens(requests), 0
    while requests:
        for request in requests:
            request.written.append(0)
        most = max(most, sum(request.tokens for request in requests))
        requests = [request for request in requests if request.left]
    assert foretold == most


@given(st.lists(st.tuples(asked, st.integers(0, 3), st.booleans()), max_size=25), st.sampled_from([1, 2, 9]))
def test_memory_suffices_all_are_answered_and_none_waits_for_ever(arrivals, most_adapters):
    scheduler, answered, killed = scheduler_of(most_adapters), [], []
    requests, begun = [], []
    arriving = list(arrivals)
    while arriving or scheduler.waiting or scheduler.running:
        if arriving:
            shape, steps, is_killed = arriving.pop(0)
            requests.append(as_request(*shape))
            scheduler.submit(requests[-1])
            if is_killed:
                killed.append(requests[len(requests) // 2])
                if killed[-1] in (*scheduler.waiting, *scheduler.running):
                    scheduler.end(killed[-1])
        for _ in range(steps if arriving else 1):
            new = scheduler.admit()
            begun += new
            adapters = {request.adapter for request in scheduler.running} - {None}
            held = sum(request.tokens + 1 for request in scheduler.running)  # each writes one
            assert held * TOKEN_PAGES + ADAPTER_PAGES * len(adapters) <= PAGES
            assert len(adapters) <= most_adapters
            assert all(request.overtaken <= PATIENCE for request in requests)
            answered += step(scheduler)
    assert {*answered} | {*killed} == {*requests}
    if most_adapters == 9:
        order = [requests.index(request) for request in begun]
        assert order == sorted(order), "first come, first served"


def test_requests_whose_adapter_is_there_overtake_but_not_for_ever():
    scheduler = scheduler_of(most_adapters=1)
    scheduler.submit(as_request(1, "a", 19))
    scheduler.admit()
    other = as_request(1, "b", 1)
    scheduler.submit(other)
    same = [as_request(1, "a", 1) for _ in range(PATIENCE + 3)]
    for request in same:
        scheduler.submit(request)
    begun = []
    while other not in begun:
        begun += scheduler.admit()
        step(scheduler)
    assert begun == [*same[:PATIENCE], other]


def test_a_request_that_never_has_room_is_refused_at_once():
    with pytest.raises(InputError, match=r"no room in the pool \(430 pages\); expected at most 400"):
        scheduler_of().submit(as_request(150, "a", 50))
