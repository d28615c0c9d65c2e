"""A small endpoint in the layout of OpenAI's completions, for tests and laptops: a base and what was trained on it.

It answers one request after another. Many users are an engine's work (`loratory export`); what no engine loads is
answered here too, as changes that have no low rank or depend on the input.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from loratory.adapters import core
from loratory.adapters.deltas import RUN, Adapter
from loratory.bases.core import Base, load_base, pad_rows
from loratory.bases.decoding import Sampling
from loratory.bases.families.causal import Family as CausalBase
from loratory.errors import InputError, short_value
from loratory.mixers.generation import generate
from loratory.mixers.store import open_expert
from loratory.problems import first_problem
from loratory.registry import unknown_name_error

REQUEST = "request"  # how errors call what was asked
LOOPBACK = ("127.0.0.1", "localhost")
LARGEST_BODY = 1 << 20  # bytes
MOST_PROMPTS = 64  # of a request, which are a batch
MOST_WAITING = 64  # requests
ADAPTERS_IN_MEMORY = 32


NEUTRAL: dict[str, Any] = {  # options of OpenAI's that clients send, and what they send where they ask for nothing
    **{"n": 1, "best_of": 1, "stream": False, "echo": False, "logprobs": None, "suffix": None},
    **{"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}},
}


def as_list(value: object) -> object:
    """One text as a list of one; nothing as a list of none."""
    return [value] if isinstance(value, str) else [] if value is None else value


Texts = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(as_list)]


class Completion(BaseModel):
    """A request, with OpenAI's names and defaults; `seed` is 0 where none is given, so that answers can be had again.

    What is not here is refused by name, as an option that is passed over would be answered wrongly.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    prompt: Texts = Field(min_length=1, max_length=MOST_PROMPTS)
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    stop: Texts = Field([], max_length=4)

    @model_validator(mode="before")
    @classmethod
    def drop_neutral(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Raises:
        ValueError: an option of OpenAI's is set that is not offered here.
        """
        for key, neutral in NEUTRAL.items():
            if given.get(key, neutral) not in (neutral, None):
                raise ValueError(f"`{key}` is not offered here ({short_value(given[key])}); fix: leave it out")
        return {key: value for key, value in given.items() if key not in {*NEUTRAL, "user"}}

    @property
    def sampling(self) -> Sampling | None:
        """None: greedy."""
        return Sampling(self.seed, self.temperature, self.top_p) if self.temperature else None


class UnknownModel(InputError):
    """A request for a model that is not served."""


class ModelServer:
    """A causal base, on which one adapter at a time is put, for requests one after another.

    Args:
        adapters: {name of a model: folder of the adapter}.

    Raises:
        InputError: the base is no causal language model.
    """

    def __init__(self, base: Base, adapters: dict[str, Path]):
        if not isinstance(base, CausalBase):
            raise InputError(base.folder, "what is served must write text", base.family, "a causal base")
        self.base, self.adapters, self.current = base, adapters, base.manifest["name"]
        self.model: torch.nn.Module = base.model
        self.open_adapter = lru_cache(ADAPTERS_IN_MEMORY)(self.read_adapter)

    @property
    def names(self) -> list[str]:
        return [self.base.manifest["name"], *self.adapters]

    def read_adapter(self, name: str) -> Adapter:
        """Raises:
        InputError: the folder is damaged, or of another base.
        """
        return open_expert(self.adapters[name], self.base.fingerprint)

    def put_adapter(self, name: str) -> None:
        """Leaves the model of this name on the base."""
        if name == self.current:
            return
        adapter = self.open_adapter(name) if name in self.adapters else None
        core.detach(self.base.model)
        self.current = self.base.manifest["name"]
        if adapter is not None:
            core.apply(self.base.model, adapter, self.adapters[name])
            self.model.to(self.base.device)
            self.current = name

    def complete(self, asked: Completion) -> dict[str, Any]:
        """The answer to a request, as the endpoint gives it.

        Raises:
            UnknownModel: no such model. InputError: prompt and answer do not fit into the base's context.
        """
        if asked.model not in self.names:
            error = unknown_name_error(f"{REQUEST}: model", "model", asked.model, self.names)
            raise UnknownModel(error.where, error.detail)
        prompts = [self.prompt_ids(prompt) for prompt in asked.prompt]
        longest = max(map(len, prompts))
        if longest + asked.max_tokens > self.base.context:
            what, given = "prompt and `max_tokens` do not fit into the context", f"{longest} + {asked.max_tokens}"
            raise InputError(f"{REQUEST}: max_tokens", what, given, f"at most {self.base.context} tokens")
        self.put_adapter(asked.model)
        rows = self.write_tokens(prompts, asked)
        choices = [{"index": place, **self.choice(row, asked)} for place, row in enumerate(rows)]
        read, written = sum(map(len, prompts)), sum(map(len, rows))
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
            "choices": choices,
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }

    def prompt_ids(self, prompt: str) -> list[int]:
        """As in training: what the tokenizer puts before a text, and the text."""
        ids = [*self.base.begin_ids, *self.base.tokens(prompt)]
        return ids or [self.base.end_id]

    def write_tokens(self, prompts: list[list[int]], asked: Completion) -> list[list[int]]:
        ids = pad_rows(prompts, self.base.pad_id, self.base.device, left=True)
        mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0, self.base.device, left=True)
        options = {"max_new_tokens": asked.max_tokens, "sampling": asked.sampling, "eos": self.base.end_id}
        return generate(self.base.model, ids, mask, stop=asked.stop, tokenizer=self.base.tokenizer, **options)

    def choice(self, row: list[int], asked: Completion) -> dict[str, Any]:
        """The text of a row up to a string that it was to stop at, and why it ends."""
        text = self.base.tokenizer.decode(row, clean_up_tokenization_spaces=False)
        ends = [text.index(stop) for stop in asked.stop if stop in text]
        stopped = bool(ends) or len(row) < asked.max_tokens
        reason = "stop" if stopped else "length"
        return {"text": text[: min(ends, default=len(text))], "finish_reason": reason, "logprobs": None}


def find_adapters(base_folder: Path) -> dict[str, Path]:
    """{name as in tables, `:seed{n}` behind it for all seeds but the first: folder} of a base among results."""
    found: dict[str, Path] = {}
    for run in sorted(base_folder.parents[1].glob(f"adapters/*/{base_folder.name}/*/seed*/{RUN}")):
        folder = run.parent
        name = f"{folder.parent.name}@{folder.parents[2].name}"
        found[f"{name}:{folder.name}" if name in found else name] = folder
    return found


def create_app(server: ModelServer, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The endpoint: `GET /v1/models` and `POST /v1/completions`.

    Args:
        hosts: names that a request may call the machine by; pages of others that point a name of theirs at it are
            refused.
    """
    worker = ThreadPoolExecutor(1)  # models change the base in place: its one thread is the queue
    waiting = 0

    async def list_models(request: Request) -> JSONResponse:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "loratory"} for name in server.names]
        return JSONResponse({"object": "list", "data": models})

    async def create_completion(request: Request) -> JSONResponse:
        nonlocal waiting
        if origin := request.headers.get("origin"):  # browsers send it; a page could make the machine work unseen
            return error_response(403, InputError(REQUEST, "a web page asks", origin, "a program"))
        try:
            asked = read_request(await read_body(request))
        except InputError as error:
            return error_response(400, error)
        if waiting >= MOST_WAITING:
            return error_response(503, InputError(REQUEST, "too many requests wait", waiting, fix="ask again later"))
        waiting += 1
        try:
            return JSONResponse(await asyncio.get_running_loop().run_in_executor(worker, server.complete, asked))
        except InputError as error:
            own = not error.where.startswith(REQUEST)  # a damaged adapter is no fault of who asks
            return error_response(500 if own else 404 if isinstance(error, UnknownModel) else 400, error)
        finally:
            waiting -= 1

    routes = [Route("/v1/models", list_models), Route("/v1/completions", create_completion, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


async def read_body(request: Request) -> bytes:
    """Raises:
    InputError: the body is larger than any request needs.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise InputError(REQUEST, f"more than {LARGEST_BODY >> 20} MB", expected="prompts, not data")
    return body


def read_request(body: bytes) -> Completion:
    """Raises:
    InputError: no JSON object, or the first thing in it that is wrong.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError(REQUEST, "not JSON", expected="a JSON object") from None
    if not isinstance(given, dict):
        raise InputError(REQUEST, "not a JSON object", given)
    try:
        return Completion.model_validate(given)
    except ValidationError as error:
        raise first_problem(error, given, REQUEST, Completion.model_json_schema()) from None


def error_response(status: int, error: InputError) -> JSONResponse:
    code = "model_not_found" if isinstance(error, UnknownModel) else error.reason
    told = {"message": str(error), "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": told}, status)


def serve_base(folder: Path | str, host: str, port: int, device: str) -> None:
    """Serves a prepared base among results, and its adapters, until it is interrupted.

    Raises:
        InputError: no prepared base is there, or none that writes text.
    """
    folder = Path(folder).resolve()
    server = ModelServer(load_base(folder, device), find_adapters(folder))
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    print(f"http://{host}:{port}/v1 answers as {', '.join(server.names)}; Ctrl-C ends it", flush=True)
    uvicorn.run(create_app(server, hosts), host=host, port=port, log_level="warning")
