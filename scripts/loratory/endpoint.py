"""A small endpoint in the layout of OpenAI's completions, for tests and laptops: a base and what was trained on it.

Requests for different adapters share batches where their changes have a low rank. What no engine loads is answered
too, one request after another: changes that have no low rank or depend on the input, and mixtures that weigh by it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing, suppress
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import uvicorn
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loratory.bases.core import load_base
from loratory.bases.decoding import Sampling
from loratory.bases.families.causal import Family as CausalBase
from loratory.errors import InputError, one_error, short_value
from loratory.problems import first_problem
from loratory.registry import unknown_name_error
from loratory.serving.catalog import find_models
from loratory.serving.server import Event, Job, ModelServer
from loratory.serving.texts import RowText

T = TypeVar("T")

REQUEST = "request"  # how errors call what was asked
LOOPBACK = ("127.0.0.1", "localhost")
LARGEST_BODY = 1 << 20  # bytes
MOST_PROMPTS = 64  # of a request
MOST_REQUESTS = 256  # that are answered or wait

NEUTRAL: dict[str, Any] = {  # options of OpenAI's that clients send, and what they send where they ask for nothing
    **{"n": 1, "best_of": 1, "echo": False, "logprobs": None, "suffix": None},
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
    stream: bool = False

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


class Answer:
    """What a server says to a request, as it comes; made in the event loop that waits for it.

    Raises:
        UnknownModel: no such model. InputError: the model is refused, or prompt and answer do not fit into the base's
            context.
    """

    def __init__(self, server: ModelServer, asked: Completion):
        self.server, self.asked = server, asked
        check_model(server, asked.model)
        prompts = [prompt_ids(server.base, prompt) for prompt in asked.prompt]
        longest = max(map(len, prompts))
        if longest + asked.max_tokens > server.base.context:
            what, given = "prompt and `max_tokens` do not fit into the context", f"{longest} + {asked.max_tokens}"
            raise InputError(f"{REQUEST}: max_tokens", what, given, f"at most {server.base.context} tokens")
        live, limit = asked.stream, asked.max_tokens
        self.rows = [RowText(server.base.tokenizer, asked.stop, limit, live) for _ in prompts]
        self.loop, self.events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self.job = Job(asked.model, prompts, limit, asked.sampling, self.put_event)
        self.head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        server.submit(self.job)

    def put_event(self, event: Event) -> None:
        """On the server's thread."""
        with suppress(RuntimeError):  # the loop ends with its client
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def text_parts(self) -> AsyncIterator[tuple[int, str]]:
        """Rows and what their texts have gained, until all rows have ended.

        Raises:
            InputError: the server cannot answer.
        """
        while any(row.reason is None for row in self.rows):
            event = await self.events.get()
            if isinstance(event, InputError):
                raise event
            place, token = event
            if self.rows[place].reason is None:
                part = self.rows[place].add_token(token)
                if self.rows[place].reason and token is not None:
                    self.server.drop(self.job, place)
                if part or self.rows[place].reason:
                    yield place, part

    async def whole_body(self) -> dict[str, Any]:
        async for _ in self.text_parts():
            pass
        choices = [self.choice(place, row.text) for place, row in enumerate(self.rows)]
        read, written = sum(map(len, self.job.prompts)), sum(len(row.ids) for row in self.rows)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {**self.head, "model": self.asked.model, "choices": choices, "usage": usage}

    def choice(self, place: int, text: str) -> dict[str, Any]:
        return {"index": place, "text": text, "finish_reason": self.rows[place].reason, "logprobs": None}

    async def event_lines(self, first: tuple[int, str], parts: AsyncIterator[tuple[int, str]]) -> AsyncIterator[str]:
        """Server-sent events: a part of a row's text each."""
        try:
            yield self.event_line(*first)
            async for place, part in parts:
                yield self.event_line(place, part)
        except InputError as error:  # the status has gone out
            yield f"data: {json.dumps(error_body(error))}\n\n"
        yield "data: [DONE]\n\n"

    def event_line(self, place: int, part: str) -> str:
        body = {**self.head, "model": self.asked.model, "choices": [self.choice(place, part)]}
        return f"data: {json.dumps(body)}\n\n"


def check_model(server: ModelServer, name: str) -> None:
    """Raises:
    UnknownModel: no such model. InputError: it answers nothing.
    """
    if name in server.catalog.refused:
        raise server.catalog.refused[name]
    if name not in server.names:
        error = unknown_name_error(f"{REQUEST}: model", "model", name, server.names)
        raise UnknownModel(error.where, error.detail)


def prompt_ids(base: CausalBase, prompt: str) -> list[int]:
    """As in training: what the tokenizer puts before a text, and the text."""
    return [*base.begin_ids, *base.tokens(prompt)] or [base.end_id]


def create_app(server: ModelServer, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The endpoint: `GET /v1/models` and `POST /v1/completions`.

    Args:
        hosts: names that a request may call the machine by; pages of others that point a name of theirs at it are
            refused.
    """
    answering: set[Answer] = set()

    async def list_models(request: Request) -> JSONResponse:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "loratory"} for name in server.names]
        return JSONResponse({"object": "list", "data": models})

    async def create_completion(request: Request) -> Response:
        if origin := request.headers.get("origin"):  # browsers send it; a page could make the machine work unseen
            return error_response(403, InputError(REQUEST, "a web page asks", origin, "a program"))
        try:
            asked = read_request(await read_body(request))
        except InputError as error:
            return error_response(400, error)
        if len(answering) >= MOST_REQUESTS:
            what, fix = "too many requests are being answered", "ask again later"
            return error_response(503, InputError(REQUEST, what, len(answering), fix=fix))
        try:
            answer = Answer(server, asked)
        except InputError as error:
            return error_response(error_status(error), error)
        answering.add(answer)

        async def end_answer() -> None:
            answering.discard(answer)
            server.drop(answer.job)

        try:
            response = await respond(request, answer)
        except BaseException:
            await end_answer()
            raise
        response.background = BackgroundTask(end_answer)  # runs too where a client leaves in the middle
        return response

    routes = [Route("/v1/models", list_models), Route("/v1/completions", create_completion, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


async def respond(request: Request, answer: Answer) -> Response:
    """The whole answer or, of one that streams, its beginning and what follows."""
    try:
        if not answer.asked.stream:
            return JSONResponse(await unless_gone(request, answer.whole_body()))
        parts = answer.text_parts()
        first = await unless_gone(request, anext(parts))
        return StreamingResponse(answer.event_lines(first, parts), media_type="text/event-stream")
    except InputError as error:
        return error_response(error_status(error), error)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Raises:
    ClientDisconnect: the client has left, and the work has been cancelled.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_until_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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


def error_status(error: InputError) -> int:
    """A damaged adapter is no fault of who asks."""
    own = not error.where.startswith(REQUEST)
    return 500 if own else 404 if isinstance(error, UnknownModel) else 400


def error_response(status: int, error: InputError) -> JSONResponse:
    return JSONResponse(error_body(error), status)


def error_body(error: InputError) -> dict[str, Any]:
    code = "model_not_found" if isinstance(error, UnknownModel) else error.reason
    told = {"message": str(error), "type": "invalid_request_error", "param": None, "code": code}
    return {"error": told}


def serve_base(folder: Path | str, host: str, port: int, device: str, memory: float) -> None:
    """Serves a prepared base among results, and what was trained on it, until it is interrupted.

    Args:
        memory: see `ModelServer`.

    Raises:
        InputError: no prepared base is there, or none that writes text; no such device; nothing can listen there.
    """
    if not 0 < memory < inf:
        raise InputError("serve: --memory", "no size", memory, "GB, above 0")
    require_device(device)
    with closing(listening_socket(host, port)) as listening:
        run_endpoint(Path(folder).resolve(), listening, host, port, device, memory)


def require_device(device: str) -> None:
    """Raises:
    InputError: torch knows no such device here.
    """
    with one_error("serve: --device", "no such device here", "cpu, or cuda where there is a GPU"):
        torch.empty(1, device=device).tolist()


def listening_socket(host: str, port: int) -> socket.socket:
    """Opened before the base is: whoever cannot listen need not load it.

    Raises:
        InputError: another program listens there, or it is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with one_error("serve", f"cannot listen at {host}:{port}", fix="take another `--port`, or `--host`"):
        return socket.create_server((host, port), family=family)


def run_endpoint(folder: Path, listening: socket.socket, host: str, port: int, device: str, memory: float) -> None:
    server = ModelServer(load_base(folder, device), find_models(folder), memory)
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    for name, reason in server.catalog.reasons.items():
        print(f"{name} answers alone: {reason}")
    for error in server.catalog.refused.values():
        print(f"not served: {error}")
    print(f"http://{host}:{port}/v1 answers as {', '.join(server.names)}; Ctrl-C ends it", flush=True)
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(create_app(server, hosts), log_level="warning")).run([listening])
    finally:
        server.close()
