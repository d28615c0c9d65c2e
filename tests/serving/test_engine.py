"""Requests that come and go are answered as each alone, out of one pool that is empty afterwards."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import causal_base, encoder_base, trained_adapter

from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.bases.decoding import Sampling, decode_batch, empty_cache
from loratory.errors import InputError
from loratory.mixers.generation import generate
from loratory.serving.engine import Engine
from loratory.serving.paging import PagedAdapters
from loratory.serving.pool import PagePool
from loratory.serving.throughput import Arrival, measure_throughput

ADAPTERS = {"a": (1, None), "b": (3, ("q_proj", "down_proj")), "c": (4, ("v_proj",)), "d": (2, None)}
NAMES = [*ADAPTERS, None]
LIMIT = 12


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A base, folders of adapters, and a function: what a prompt's continuation is, alone."""
    root = tmp_path_factory.mktemp("served")
    base = causal_base(root / "base", ears=False)
    folders = {}
    for seed, (name, (rank, targets)) in enumerate(ADAPTERS.items()):
        adapter = trained_adapter(base.model, Method(rank=rank, target_modules=targets), seed)
        folders[name] = root / name
        deltas.save_adapter(folders[name], adapter, causal=True)
    known = {}

    def alone(name, ids, limit):
        if (name, *ids) not in known:
            if name is not None:
                core.apply(base.model, deltas.load_adapter(folders[name]), name)
            prompt = torch.tensor([ids])
            mask = torch.ones_like(prompt)
            inputs = {"input_ids": prompt, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}
            forward = lambda inputs, cache: base.model(**inputs, past_key_values=cache)  # noqa: E731
            known[name, *ids] = decode_batch(forward, inputs, empty_cache(base.model), base.end_id, LIMIT)[0]
            core.detach(base.model)
        return known[name, *ids][:limit]

    return base, folders, alone


def prompt(number: int) -> list[int]:
    return [3 + (7 * number + 5 * place) % 250 for place in range(1 + 3 * number % 10)]


def check_pool(engine: Engine) -> None:
    """Each page but the first has one owner: free, a request that runs, or an adapter that is resident."""
    pool = engine.pool
    owned = [page for pages in pool.owned.values() for page in pages]
    assert sorted([*owned, *pool.free]) == list(range(1, pool.pages + 1)) and not pool.vectors[0].any()
    assert {*pool.owned} == {*engine.scheduler.running, *engine.adapters.resident}
    for name, place in engine.adapters.places.items():
        row = engine.adapters.table[place]
        assert sorted(row[row > 0].tolist()) == sorted(pool.owned.get(name, [])), "layers read an adapter's own pages"
    used = {request.adapter for request in engine.scheduler.running} - {None}
    assert used == {name for name, uses in engine.adapters.uses.items() if uses} and used <= {
        *engine.adapters.resident
    }


coming = st.tuples(st.integers(0, 9), st.sampled_from(NAMES), st.integers(1, LIMIT), st.integers(0, 3))


@settings(max_examples=25, deadline=None)
@given(st.lists(coming, min_size=1, max_size=10), st.sets(st.integers(0, 9)), st.sampled_from([1, 2, 4]))
def test_every_request_is_answered_as_if_it_were_alone_and_leaves_nothing_behind(served, arrivals, killed, most):
    base, folders, alone = served
    engine = Engine(base, folders, pages=250, most_adapters=most)
    try:
        requests = []
        for number, name, limit, steps in arrivals:
            requests.append(engine.submit(prompt(number), name, limit))
            for _ in range(steps):
                engine.step()
                check_pool(engine)
            place = len(requests) - 1
            if place in killed and requests[place] in (*engine.scheduler.waiting, *engine.scheduler.running):
                engine.kill(requests[place])
                assert requests[place] not in engine.pool.owned
                check_pool(engine)
        engine.run()
        check_pool(engine)
        for place, (request, (number, name, limit, _)) in enumerate(zip(requests, arrivals)):
            expected = alone_on(engine, alone, name, prompt(number), limit)
            assert request.written == (expected if place not in killed else expected[: len(request.written)])
        engine.adapters.make_room(engine.pool.pages)
        assert len(engine.pool.free) == engine.pool.pages and not engine.pool.owned
    finally:
        engine.close()


def alone_on(engine, alone, name, ids, limit):
    """What is written without the engine, whose layers are taken off for it and put on again."""
    with engine.adapters.set_aside():
        return alone(name, ids, limit)


def test_what_is_drawn_beside_others_is_what_is_drawn_alone(served):
    """Each row by a generator of its own, whoever joins and leaves; the base's own model is the witness."""
    base, folders, _ = served
    sampling = Sampling(5, temperature=0.8, top_p=0.9)
    with torch.no_grad():
        ids = torch.tensor([prompt(3)])
        wanted = generate(base.model, ids, max_new_tokens=LIMIT, sampling=sampling, eos=base.end_id)[0]
    engine = Engine(base, folders, pages=2000)
    try:
        first = engine.submit(prompt(1), "a", 2, Sampling(7))
        engine.step()
        found = engine.submit(prompt(3), None, LIMIT, sampling)
        engine.submit(prompt(2), None, LIMIT)
        engine.run()
        assert found.written == wanted and len(first.written) <= 2
    finally:
        engine.close()


def test_the_least_recently_used_adapter_leaves_and_one_in_use_stays(served):
    base, folders, _ = served
    engine = Engine(base, folders, pages=1000)
    adapters = engine.adapters
    for name in ("a", "b", "c", "a"):
        adapters.take(name)
        adapters.give_back(name)
    assert [*adapters.resident] == ["b", "c", "a"]
    adapters.take("b")
    free = len(engine.pool.free)
    adapters.make_room(free + 1)
    assert [*adapters.resident] == ["a", "b"], "c was used before a; b is in use"
    assert len(engine.pool.free) == free + adapters.pages_needed("c")
    adapters.make_room(engine.pool.pages)
    assert [*adapters.resident] == ["b"]
    with pytest.raises(RuntimeError, match=r"not in the pool: \['a'\]"), adapters.use_rows(["a", "b"]):
        pass
    engine.close()


def test_adapters_stay_in_their_files_until_they_are_used(served):
    """Mapped into memory: what nobody reads takes none."""
    base, folders, _ = served
    engine = Engine(base, folders, pages=300)
    maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "safetensors" in line}
    assert {str(folder / "adapter_model.safetensors") for folder in folders.values()} <= maps
    assert not engine.adapters.resident and not engine.pool.vectors.any()
    engine.close()


def test_what_cannot_be_served_is_refused(served, tmp_path):
    base, folders, _ = served
    engine = Engine(base, folders, pages=300)
    for expected, (ids, name, limit) in {
        "unknown adapter": ([1], "e", 1),
        "nothing to continue": ([], "a", 1),
        "no room in the pool": ([1] * 100, "a", 50),
        r"too long \(250 \+ 50 tokens\)": ([1] * 250, "a", 50),
    }.items():
        with pytest.raises(InputError, match=expected):
            engine.submit(ids, name, limit)
    engine.close()
    bert = encoder_base(tmp_path / "bert")
    adapter = trained_adapter(bert.model, Method(rank=1), 0, bert.heads)
    with pytest.raises(InputError, match="trained whole has no place in a pool"):
        PagedAdapters(bert.model, {"x": adapter}, {"x": "x"}, PagePool(9, 8, torch.zeros(0)))


def test_what_is_measured_is_answered_and_each_request_waits_from_when_it_came(served):
    base, folders, alone = served
    engine = Engine(base, folders, pages=250)
    arrivals = [Arrival(prompt(number), name, 4, number * 0.01) for number, name in enumerate([*NAMES, "a"])]
    found = measure_throughput(engine, [*reversed(arrivals)])
    assert found.written == [alone_on(engine, alone, one.adapter, one.ids, 4) for one in reversed(arrivals)]
    assert 0 < min(found.first_token) <= found.median_first_token <= found.p95_first_token < found.seconds
    assert found.requests_per_second * found.seconds == pytest.approx(len(arrivals))
    engine.adapters.make_room(engine.pool.pages)
    assert 0 < found.pool_bytes <= 250 * engine.pool.width * 4 and found.device_bytes is None
    engine.close()
