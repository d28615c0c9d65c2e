"""The endpoint answers as each adapter alone would, one request after another, and says in one line what is wrong."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from families import Toy, train
from models import causal_base, encoder_base
from starlette.testclient import TestClient

from loratory import __main__ as command_line
from loratory import endpoint, registry
from loratory.adapters import core, deltas
from loratory.bases.core import load_base
from loratory.endpoint import ModelServer, create_app, find_adapters
from loratory.errors import InputError

METHODS = {"lora": {"rank": 2}, "dora": {"rank": 2}, "smora": {}}  # of low rank, of whole weights, by the input
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
    return base.folder


@pytest.fixture(scope="module")
def client(base_folder) -> TestClient:
    server = ModelServer(load_base(base_folder), find_adapters(base_folder))
    return TestClient(create_app(server), base_url="http://127.0.0.1:8000")


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
    if name != "toy":
        folder = find_adapters(base_folder)[name]
        core.apply(base.model, deltas.load_adapter(folder), folder)
    start = base.tokenizer(prompt)["input_ids"]
    ids = list(start)
    with torch.no_grad():
        while len(ids) < len(start) + limit and ids[-1] != base.end_id:
            ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return base.tokenizer.decode([id for id in ids[len(start) :] if id != base.end_id])


NAMES = ["toy", "dora@text", "lora@text", "lora@text:seed1", "smora@text"]


def test_models_are_the_base_and_its_adapters_as_tables_call_them(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == NAMES


def test_each_model_writes_what_it_would_alone_whichever_was_asked_before(client, base_folder):
    wanted = {name: [greedy_text(base_folder, name, prompt) for prompt in PROMPTS] for name in NAMES}
    assert len({*map(tuple, wanted.values())}) > 3, "the adapters say nothing of their own"
    for name in [*NAMES, *reversed(NAMES), "toy"]:
        assert [texts(client, model=name, prompt=prompt)[0] for prompt in PROMPTS] == wanted[name]


def test_requests_at_the_same_time_do_not_mix(client):
    wanted = {name: texts(client, model=name) for name in NAMES}
    asked = NAMES * 6
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: texts(client, model=name), asked))
    assert found == [wanted[name] for name in asked]


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
        (400, {"stream": True}, "request: `stream` is not offered here (True)"),
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
    server = ModelServer(load_base(base_folder), {"broken": broken, "lora": find_adapters(base_folder)["lora@text"]})
    client = TestClient(create_app(server), base_url="http://localhost")
    wanted = texts(client, model="lora")
    assert "no adapter_config.json" in ask(client, 500, model="broken")["error"]["message"]
    assert texts(client, model="lora") == wanted != texts(client)


def test_more_requests_than_may_wait_are_told_to_come_back(base_folder, monkeypatch):
    monkeypatch.setattr(endpoint, "MOST_WAITING", 0)
    client = TestClient(create_app(ModelServer(load_base(base_folder), {})), base_url="http://localhost")
    assert "too many requests wait" in ask(client, 503)["error"]["message"]


def test_the_command_listens_at_this_machine_alone_unless_told(base_folder, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(endpoint.uvicorn, "run", lambda app, **options: calls.append(options))
    assert command_line.main(["serve", str(base_folder), "--port", "8123"]) == 0
    assert calls == [{"host": "127.0.0.1", "port": 8123, "log_level": "warning"}]
    assert "http://127.0.0.1:8123/v1 answers as toy, dora@text" in capsys.readouterr().out


def test_a_base_that_writes_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must write text \(encoder\); expected a causal base"):
        ModelServer(encoder_base(tmp_path / "toy"), {})


def test_the_answer_is_json_that_anybody_reads(client):
    assert json.loads(client.post("/v1/completions", json={"model": "toy", "prompt": "a"}).content)["choices"]
