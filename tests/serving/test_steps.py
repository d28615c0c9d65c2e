"""Steps in place, replayed or not, by kernels or without, write what each request writes alone; on a GPU too."""

import numpy as np
import pytest
import torch
from models import causal_base, trained_adapter

from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.bases.decoding import decode_batch, empty_cache
from loratory.serving import layers
from loratory.serving.engine import Engine, cut_prompts
from loratory.serving.scheduling import Request
from loratory.serving.steps import Rows, Steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RANKS = {"a": 1, "b": 3, "c": 4, "d": 2}
LIMIT = 7
REQUESTS = [(3, "a"), (17, None), (1, "b"), (9, "a"), (66, "c"), (4, "b"), (5, "d")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A base on the device, folders of adapters, and what each request writes alone."""
    root = tmp_path_factory.mktemp("served")
    base = causal_base(root / "base", ears=False)
    folders = {name: root / name for name in RANKS}
    for seed, (name, rank) in enumerate(RANKS.items()):
        targets = ("q_proj", "down_proj") if name == "c" else None
        adapter = trained_adapter(base.model, Method(rank=rank, target_modules=targets), seed)
        deltas.save_adapter(folders[name], adapter, causal=True)
    base.model.to(DEVICE)
    alone = []
    for length, name in REQUESTS:
        if name is not None:
            core.apply(base.model, deltas.load_adapter(folders[name]), name)
        ids = torch.tensor([prompt(length)], device=DEVICE)
        mask = torch.ones_like(ids)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}
        forward = lambda inputs, cache: base.model(**inputs, past_key_values=cache)  # noqa: E731
        alone.append(decode_batch(forward, inputs, empty_cache(base.model), base.end_id, LIMIT)[0])
        core.detach(base.model)
    return base, folders, alone


def prompt(length: int) -> list[int]:
    return [3 + (length + 5 * place) % 250 for place in range(length)]


class Replayed:
    """In place of a graph on a CPU."""

    def __init__(self, steps, count, length):
        self.replay = lambda: steps.run_step(count, length)


KINDS = [
    pytest.param(False, False, id="eager"),
    pytest.param(False, True, id="replayed"),
    pytest.param(
        True,
        True,
        id="kernels, replayed",
        marks=pytest.mark.skipif(not layers.TRITON, reason="Triton comes with PyTorch for CUDA"),
    ),
]


@pytest.mark.parametrize(("kernels", "capture"), KINDS)
def test_steps_in_place_write_what_each_request_writes_alone(served, monkeypatch, kernels, capture):
    base, folders, alone = served
    monkeypatch.setattr(layers, "has_kernel", lambda x: kernels)
    if DEVICE == "cpu":
        monkeypatch.setattr(Steps, "capture_step", lambda *given: Replayed(*given))
    count, limit = (4, 4) if kernels and DEVICE == "cpu" else (len(REQUESTS), LIMIT)  # an interpreter is slow
    engine = Engine(base, folders, pages=1500, most_adapters=3, most_rows=4, capture=capture)
    try:
        requests = [engine.submit(prompt(length), name, limit) for length, name in REQUESTS[:count]]
        engine.run()
        assert [request.written for request in requests] == [one[:limit] for one in alone[:count]]
        assert any(engine.steps.graphs.values()) == capture
        assert engine.steps.capture == capture, "all shapes could be captured"
        assert not engine.pool.vectors[0].any() and sorted(engine.free_seats) == [0, 1, 2, 3]
    finally:
        engine.close()


def test_steps_that_cannot_be_captured_go_on_as_they_are(served, monkeypatch, capsys):
    base, folders, alone = served

    def capture_step(*given):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Steps, "capture_step", capture_step)
    engine = Engine(base, folders, pages=1500, capture=True)
    length, name = REQUESTS[0]
    request = engine.submit(prompt(length), name, LIMIT)
    engine.run()
    engine.close()
    assert request.written == alone[0]
    assert capsys.readouterr().out == "steps are not replayed: operation not permitted when stream is capturing\n"


def test_adapters_of_requests_that_wait_come_ahead_and_those_that_are_wanted_stay(served):
    base, folders, _ = served
    engine = Engine(base, folders, pages=2000, most_rows=1)
    adapters = engine.adapters
    for name in ("a", "b", "c"):
        engine.submit(prompt(2), name, 3)
    engine.step()
    assert [*adapters.resident] == ["a", "b", "c"] and adapters.uses["a"] == 1 and not adapters.uses["b"]
    rest = len(engine.pool.free) - adapters.pages["d"] + 1
    taken = engine.pool.allocate("test", rest)  # so that d has no room
    adapters.fetch_ahead(["b", "c", "d"], 4)
    assert [*adapters.resident] == ["a", "b", "c"], "a is in use, the others are wanted sooner"
    adapters.fetch_ahead(["c", "d"], 4)
    assert [*adapters.resident] == ["a", "c", "d"], "nobody waits for b"
    assert len({*taken.tolist(), *engine.pool.owned["d"]}) == len(taken) + adapters.pages["d"]
    engine.close()


def test_prompts_are_read_with_others_of_their_length():
    lengths = [5, 1, 9, 2, 1, 30]
    parts = cut_prompts([Request([0] * length, None, 1) for length in lengths], 10)
    assert [[len(one.ids) for one in part] for part in parts] == [[1, 1, 2], [5], [9], [30]]


def test_rows_of_one_adapter_are_a_tile_or_more(served):
    base, folders, _ = served
    engine = Engine(base, folders, pages=1500, most_rows=24)
    places = [*[0] * 3, *[2] * 20, 4]
    numbers = np.array([(1, 2, row, place) for row, place in enumerate(places)], np.int32)
    found = engine.steps.fill_inputs(Rows(numbers, np.ones((24, engine.steps.parts), np.int32)), 32)
    assert found[:5, 4:7].tolist() == [[0, 0, 3], [2, 3, 19], [2, 19, 23], [4, 23, 24], [0, 0, 0]]
    assert (found[:24, :4] == numbers).all() and (found[24:, 2] == 24).all() and not found[24:, 7:].any()
    engine.close()
