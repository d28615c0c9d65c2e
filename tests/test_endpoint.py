"""The endpoint answers as each model alone would, whoever asks besides, and says in one line what is wrong."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

import pytest
import torch
import uvicorn
from families import Toy, train
from models import causal_base, encoder_base, opinionated
from starlette.testclient import TestClient

from loratory import __main__ as command_line
from loratory import endpoint, registry
from loratory.adapters import core, deltas
from loratory.bases.core import load_base
from loratory.endpoint import ModelServer, create_app, find_models
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.generation import generate
from loratory.mixers.store import open_mixture, save_mixture
from loratory.serving import server as serving

METHODS = {"lora": {"rank": 2}, "dora": {"rank": 2}, "smora": {}}  # of low rank, of whole weights, by the input
MIXERS = (
    "ties",
    "uniform",
    "xlora",
    "oracle",
)  # two that are adapters, one that weighs by its input, one that is told
PROMPTS = ["will the user like it", "MKTAYIAK"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    """A base among results, and adapters that a few steps trained: two seeds of one, one of each other."""
    results = tmp_path_factory.mktemp("study") / "results"
    base = causal_base(results / "bases" / "toy", ears=False)
    for method, options in METHODS.items():
        for seed in range(2 if method == "lora" else 1):
            kind = registry.load_module("method", method).Method(**options)
            train(Toy(lambda: base.model, 0), kind, results / "checkpoints" / method, rate=0.1, seed=seed)
            run = {"base": "toy", "base_sha256": base.fingerprint}
            folder = results / "adapters" / "text" / "toy" / method / f"seed{seed}"
            deltas.save_adapter(folder, core.export(base.model, (), run), causal=True)
            core.detach(base.model)
    experts = {f"e{seed}": results / "adapters" / "text" / "toy" / "lora" / f"seed{seed}" for seed in range(2)}
    for kind in MIXERS:
        mixer = registry.load_module("mixer", kind).Mixer()
        given = {name: deltas.load_adapter(folder) for name, folder in experts.items()}
        mixture = opinionated(Mixture(base.model, mixer.prepare_experts(given, 0), mixer))
        run = {"base": "toy", "base_sha256": base.fingerprint}
        save_mixture(results / "mixtures" / kind / "seed0", mixture, kind, experts, run)
        mixture.remove_experts()
    return base.folder


@pytest.fixture(scope="module")
def server(base_folder):
    server = ModelServer(load_base(base_folder), find_models(base_folder))
    yield server
    assert settles(lambda: is_empty(server)), "answers left pages behind"
    server.close()


@pytest.fixture(scope="module")
def client(server) -> TestClient:
    return TestClient(create_app(server), base_url="http://127.0.0.1:8000")


def settles(condition, seconds: float = 30) -> bool:
    """Whether a condition comes true while other threads work."""
    until = monotonic() + seconds
    while not condition() and monotonic() < until:
        sleep(0.01)
    return condition()


def is_empty(server: ModelServer) -> bool:
    """No request is anywhere, and no page is owned but by adapters that stay until others need the room."""
    engine = server.engine
    idle = not (server.rows or server.alone or engine.scheduler.running or engine.scheduler.waiting)
    return idle and {*engine.pool.owned} <= {*engine.adapters.resident} and not any(engine.adapters.uses.values())


def ask(client: TestClient, status: int = 200, **changes) -> dict:
    body = {"model": "toy", "prompt": PROMPTS[0], "max_tokens": 6, "temperature": 0} | changes
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def texts(client: TestClient, **changes) -> list[str]:
    return [choice["text"] for choice in ask(client, **changes)["choices"]]


def greedy_text(base_folder: Path, name: str, prompt: str, limit: int = 6) -> str:
    """By running the whole text anew for each token, on a base of its own."""
    base = load_base(base_folder)
    if name in MIXERS:
        model = open_mixture(find_models(base_folder)[name], base)
        ids = torch.tensor([base.tokenizer(prompt)["input_ids"]])
        return base.tokenizer.decode(generate(model, ids, max_new_tokens=limit, eos=base.end_id)[0])
    if name != "toy":
        folder = find_models(base_folder)[name]
        core.apply(base.model, deltas.load_adapter(folder), folder)
    start = base.tokenizer(prompt)["input_ids"]
    ids = list(start)
    with torch.no_grad():
        while len(ids) < len(start) + limit and ids[-1] != base.end_id:
            ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return base.tokenizer.decode([id for id in ids[len(start) :] if id != base.end_id])


SHARED = ["toy", "lora@text", "lora@text:seed1", "ties", "uniform"]
NAMES = ["toy", "dora@text", "lora@text", "lora@text:seed1", "smora@text", "ties", "uniform", "xlora"]


def test_models_are_the_base_and_what_was_trained_on_it_as_tables_call_them(client, server):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == NAMES
    assert [*server.catalog.shared] == SHARED
    assert server.catalog.reasons == {
        "dora@text": "the change of model.layers.0.mlp.down_proj.weight has no low rank",
        "smora@text": "the change of model.layers.0.mlp.down_proj depends on the input (smora)",
        "xlora": "its mixer weighs experts by the input (xlora)",
    }


def test_each_model_writes_what_it_would_alone_whichever_was_asked_before(client, base_folder):
    wanted = {name: [greedy_text(base_folder, name, prompt) for prompt in PROMPTS] for name in NAMES}
    assert len({*map(tuple, wanted.values())}) > 3, "the adapters say nothing of their own"
    for name in [*NAMES, *reversed(NAMES), "toy"]:
        assert [texts(client, model=name, prompt=prompt)[0] for prompt in PROMPTS] == wanted[name]


def test_requests_at_the_same_time_share_batches_and_do_not_mix(client, server, monkeypatch):
    """Those of low rank in one pass, drawn or greedy; the others between two steps."""
    passes, write = [], server.engine.write_tokens

    def note_adapters(rows):
        passes.append({row.adapter for row in rows})
        return write(rows)

    monkeypatch.setattr(server.engine, "write_tokens", note_adapters)
    heats = {name: 0.7 * (place % 2) for place, name in enumerate(NAMES)}
    write_texts = lambda name: texts(client, model=name, temperature=heats[name], prompt=PROMPTS)  # noqa: E731
    wanted = {name: write_texts(name) for name in NAMES}
    passes.clear()
    with ThreadPoolExecutor(16) as pool:
        assert [*pool.map(write_texts, NAMES * 4)] == [*map(wanted.get, NAMES * 4)]
    assert max(map(len, passes)) > 2, "requests of different adapters took turns"


def test_a_prompt_is_drawn_as_if_it_were_asked_alone(client):
    for name in ("lora@text", "dora@text"):
        drawn = {"model": name, "temperature": 1.0, "seed": 5, "max_tokens": 12}
        each = [texts(client, prompt=prompt, **drawn)[0] for prompt in PROMPTS]
        assert texts(client, prompt=PROMPTS, **drawn) == each


@pytest.mark.parametrize("name", ["lora@text", "dora@text"])
def test_a_stream_says_in_parts_what_the_whole_answer_says(client, name):
    whole = ask(client, model=name, prompt=PROMPTS, max_tokens=20)["choices"]
    stop = whole[0]["text"][5:7]
    for changes in ({}, {"stop": stop}):
        body = {"model": name, "prompt": PROMPTS, "max_tokens": 20, "temperature": 0} | changes
        whole = ask(client, **body)["choices"]
        answer = client.post("/v1/completions", json=body | {"stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        *lines, last = answer.text.removesuffix("\n\n").split("\n\n")
        assert last == "data: [DONE]"
        parts = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
        for place, choice in enumerate(whole):
            own = [part for part in parts if part["index"] == place]
            assert "".join(part["text"] for part in own) == choice["text"]
            assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
            assert changes or len(own) > 3


@pytest.fixture
def address(server):
    """The endpoint on a port of this machine."""
    runner = uvicorn.Server(uvicorn.Config(create_app(server), port=0, log_level="error"))
    thread = Thread(target=runner.run)
    thread.start()
    assert settles(lambda: runner.started)
    yield runner.servers[0].sockets[0].getsockname()
    runner.should_exit = True
    thread.join()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["lora@text", "dora@text"])
def test_a_client_that_leaves_ends_its_request_and_frees_its_pages(server, address, name, stream, monkeypatch):
    ended, end_job = [], server.end_job
    monkeypatch.setattr(server, "end_job", lambda job, row=None: (ended.append(job), end_job(job, row)))
    tokens, deliver = [], endpoint.Answer.put_event

    def slow(answer, event):
        tokens.append(event)
        sleep(0.01)
        deliver(answer, event)

    monkeypatch.setattr(endpoint.Answer, "put_event", slow)
    options = {"model": name, "prompt": PROMPTS[0], "max_tokens": 200, "temperature": 2.0, "stream": stream}
    body = json.dumps(options).encode()
    with socket.create_connection(address) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert settles(lambda: len(tokens) > 3)
    assert settles(lambda: ended) and settles(lambda: is_empty(server))
    count = len(tokens)
    sleep(0.1)
    assert len(tokens) == count < 150, "the request went on without its client"


@pytest.mark.parametrize(
    ("many", "one"), [("lora@text", "lora@text:seed1"), ("lora@text", "dora@text"), ("dora@text", "toy")]
)
def test_no_adapter_starves_beside_one_that_is_always_asked(base_folder, many, one, monkeypatch):
    """There is room for one adapter at a time, and clients that ask for another one again and again."""
    monkeypatch.setattr(serving, "ADAPTERS_AT_ONCE", 1)
    server, limit, answered = ModelServer(load_base(base_folder), find_models(base_folder)), 30, Event()
    client = TestClient(create_app(server), base_url="http://localhost")

    def ask_again(place):
        for count in range(limit):
            if answered.is_set():
                return count
            texts(client, model=many, max_tokens=20 + 9 * place)  # so that they never end together
        return limit

    with ThreadPoolExecutor(4) as pool:
        counts = pool.map(ask_again, range(4))
        assert settles(lambda: server.rows or server.alone or server.current)
        texts(client, model=one, max_tokens=8)
        answered.set()
        assert max(counts) < limit
    server.close()


def test_a_step_that_fails_is_an_error_of_its_requests_alone(client, server, monkeypatch, capfd):
    def fail(rows):
        raise MemoryError("none left")

    with monkeypatch.context() as broken:
        broken.setattr(server.engine, "read_prompts", fail)
        assert "MemoryError: none left" in ask(client, 500, model="lora@text")["error"]["message"]
    assert "MemoryError" in capfd.readouterr().err
    assert texts(client) and settles(lambda: is_empty(server))


def test_what_has_no_room_or_needs_more_than_a_prompt_is_refused_by_name(client, base_folder):
    error = ask(client, 400, model="oracle")["error"]["message"]
    assert error.startswith("request: model: oracle: the mixer must know its input's domain")
    server = ModelServer(load_base(base_folder), {}, memory=1e-5)
    small = TestClient(create_app(server), base_url="http://localhost")
    for stream in (False, True):
        assert (
            "the request has no room in the pool" in ask(small, 400, stream=stream, max_tokens=99)["error"]["message"]
        )
    server.close()


def test_an_answer_has_the_fields_that_clients_read(client, base_folder):
    answer = ask(client, model="lora@text", prompt=PROMPTS)
    prompts = sum(len(load_base(base_folder).tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    assert answer["object"] == "text_completion" and answer["model"] == "lora@text"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == prompts
    assert answer["usage"]["total_tokens"] == prompts + answer["usage"]["completion_tokens"]


def test_options_that_ask_for_nothing_are_taken(client):
    neutral = {"n": 1, "stream": False, "frequency_penalty": 0.0, "logit_bias": None, "logprobs": None, "user": "me"}
    assert texts(client, **neutral) == texts(client)


def test_a_seed_draws_the_same_again_and_another_one_something_else(client):
    drawn = [texts(client, temperature=1.0, seed=seed, max_tokens=12) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_text_ends_before_the_string_that_it_was_to_stop_at(client):
    [text] = texts(client, max_tokens=12)
    stop = text[len(text) // 2 :][:2]
    [choice] = ask(client, max_tokens=12, stop=[stop, "never"])["choices"]
    assert choice["text"] == text[: text.index(stop)] and choice["finish_reason"] == "stop"
    assert ask(client, max_tokens=1)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("status", "changes", "says"),
    [
        (404, {"model": "lora@texts"}, "request: model: unknown model (lora@texts); expected one of"),
        (400, {"max_tokens": 1000}, "request: max_tokens: prompt and `max_tokens` do not fit into the context"),
        (400, {"max_tokens": 0}, "request: max_tokens: wrong value (0)"),
        (400, {"temperature": -1}, "request: temperature: wrong value (-1)"),
        (400, {"n": 2}, "request: `n` is not offered here (2)"),
        (400, {"frequency_penalty": 0.5}, "request: `frequency_penalty` is not offered here (0.5)"),
        (400, {"prompt": []}, "request: prompt: wrong value"),
        (400, {"prompt": [3, 4]}, "request: prompt.0: wrong value (3); expected text"),
        (400, {"stop": ""}, "request: stop.0: wrong value"),
        (400, {"top_pp": 1}, "request: unknown key (top_pp); expected one of"),
    ],
)
def test_a_wrong_request_is_one_line(client, status, changes, says):
    error = ask(client, status, **changes)["error"]
    assert error["message"].startswith(says) and "\n" not in error["message"]
    assert (error["code"] == "model_not_found") == (status == 404)
    assert texts(client)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"model": "' + b"x" * (1 << 21) + b'"}'])
def test_a_body_that_is_no_request_is_refused(client, body):
    answer = client.post("/v1/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("request: ")


def test_pages_that_point_a_name_of_theirs_at_this_machine_are_refused(client):
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_a_web_page_cannot_make_the_machine_work(client):
    headers = {"origin": "https://evil.example", "content-type": "text/plain"}
    answer = client.post("/v1/completions", content=b'{"model": "toy", "prompt": "a"}', headers=headers)
    assert answer.status_code == 403 and "a web page asks" in answer.json()["error"]["message"]


def test_a_damaged_adapter_is_no_fault_of_who_asks_and_harms_no_other(base_folder, tmp_path):
    broken = tmp_path / "seed0"
    broken.mkdir()
    server = ModelServer(load_base(base_folder), {"broken": broken, "lora": find_models(base_folder)["lora@text"]})
    client = TestClient(create_app(server), base_url="http://localhost")
    wanted = texts(client, model="lora")
    assert "no adapter_config.json" in ask(client, 500, model="broken")["error"]["message"]
    assert texts(client, model="lora") == wanted != texts(client)


def test_more_requests_than_may_wait_are_told_to_come_back(base_folder, monkeypatch):
    monkeypatch.setattr(endpoint, "MOST_REQUESTS", 0)
    client = TestClient(create_app(ModelServer(load_base(base_folder), {})), base_url="http://localhost")
    assert "too many requests are being answered" in ask(client, 503)["error"]["message"]


def test_the_command_listens_at_this_machine_alone_unless_told(base_folder, monkeypatch, capsys):
    listening = []
    monkeypatch.setattr(endpoint.uvicorn.Server, "run", lambda self, at: listening.extend(s.getsockname() for s in at))
    assert command_line.main(["serve", str(base_folder), "--port", "8123"]) == 0
    assert listening == [("127.0.0.1", 8123)]
    assert "http://127.0.0.1:8123/v1 answers as toy, dora@text" in capsys.readouterr().out


def test_what_cannot_be_served_so_is_refused_in_one_line_before_the_base_is_loaded(base_folder, monkeypatch, capsys):
    monkeypatch.setattr(endpoint, "load_base", lambda *_: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong = {
            "--port": [str(taken.getsockname()[1]), "99999", "-1"],
            "--host": ["nowhere.invalid"],
            "--memory": ["nan", "-1", "0", "inf"],
            "--device": ["gpu", "cuda:99"],
            "--devise": ["cpu"],
        }
        for option, value in ((option, value) for option, values in wrong.items() for value in values):
            assert command_line.main(["serve", str(base_folder), f"{option}={value}"]) == 1
            [line] = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ") and len(line) < 300, line


def test_a_base_that_writes_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must write text \(encoder\); expected a causal base"):
        ModelServer(encoder_base(tmp_path / "toy"), {})


def test_the_answer_is_json_that_anybody_reads(client):
    assert json.loads(client.post("/v1/completions", json={"model": "toy", "prompt": "a"}).content)["choices"]
