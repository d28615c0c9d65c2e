"""Downloads from a server on this machine that speaks the hub's HTTP layout, in good and in bad weather."""

import hashlib
import json
import re
import shutil
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import _tree_cache, constants, file_download
from models import entry, llama, save, text_tokenizer

from loratory.bases import hub
from loratory.bases.core import load_base
from loratory.bases.prepare import prepare_hub
from loratory.data.files import read_json
from loratory.errors import InputError

ID, COMMIT = "someone/tiny-lm", "87c7102498dcde7456f24cfd30239ca606ed9063"
WEIGHTS = "model.safetensors"
CHUNK = 1024  # bytes that are written at once, 10 MB outside of tests; what came of the next is lost with a connection


class Hub(ThreadingHTTPServer):
    """A repository with one commit.

    Attributes:
        files: {name: content}. asked: every request as (verb, name, its Range header).
        broken: {name: bytes after which a connection breaks, for each next request of the file}.
        served: {name: content that is sent in its place}. gone: listed, yet not there. gated: licence not accepted.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked = files, []
        self.broken: dict[str, list[int]] = {}
        self.served: dict[str, bytes] = {}
        self.gone: set[str] = set()
        self.gated = False

    def fetched(self) -> set[str]:
        return {name for verb, name, _ in self.asked if verb == "GET"}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == f"/api/models/{ID}/tree/{COMMIT}":
            return self.refuse_gated() if self.server.gated else self.send(json.dumps(self.tree()).encode(), {})
        if found := re.fullmatch(f"/{ID}/resolve/{COMMIT}/(.+)", path):
            return self.refuse_gated() if self.server.gated else self.resolve(found[1], body)
        known = path.startswith((f"/api/models/{ID}/", f"/{ID}/"))
        self.refuse(404, "RevisionNotFound" if known else "RepoNotFound")

    def resolve(self, name: str, body: bool) -> None:
        self.server.asked.append((self.command, name, self.headers.get("Range")))
        if name not in self.server.files or name in self.server.gone:
            return self.refuse(404, "EntryNotFound")
        content, headers = self.server.files[name], {"Accept-Ranges": "bytes", "X-Repo-Commit": COMMIT}
        headers["ETag"] = f'"{checksum(name, content)}"'
        if name == WEIGHTS:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
        self.send(self.server.served.get(name, content), headers, body, name)

    def send(self, content: bytes, headers: dict, body: bool = True, name: str = "") -> None:
        start, status = 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(wanted[1]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        breaks = self.server.broken.get(name)
        self.wfile.write(content[start:][: breaks.pop(0) if breaks else None])
        if breaks is not None and self.server.broken[name] is breaks:
            self.close_connection = True

    def tree(self) -> list[dict]:
        found = []
        for name, content in self.server.files.items():
            row = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            if name == WEIGHTS:
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            found.append(row)
        return found

    def refuse_gated(self) -> None:
        self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def checksum(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name == WEIGHTS else git_sha1(content)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> dict[str, bytes]:
    """A tiny model as published: with pickles, code, other formats and a subfolder beside it."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    save(folder, "causal", llama(len(text_tokenizer())), text_tokenizer())
    (folder / "base.json").unlink()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = ("pytorch_model.bin", "modeling.py", "onnx/model.json", "consolidated.safetensors", "flax_model.msgpack")
    return files | dict.fromkeys(others, b"{}") | {"README.md": b"# Tiny"}


@pytest.fixture
def server(repository, tmp_path, monkeypatch):
    """A running hub, and this process pointed to it with an empty cache."""
    found = Hub(dict(repository))
    Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    point_to(f"http://127.0.0.1:{found.server_port}", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between attempts
    yield found
    found.shutdown()
    found.server_close()


def point_to(endpoint: str, monkeypatch) -> None:
    """What HF_ENDPOINT and HF_HUB_DISABLE_XET do in a new process."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def published(commit: str = COMMIT):
    given = entry("causal")
    given.hub, given.revision = ID, commit
    return given


def prepare(tmp_path: Path, repository: str = ID, **options) -> Path:
    prepare_hub(repository, "tiny", published(**options), tmp_path / "bases" / "tiny")
    return tmp_path / "bases" / "tiny"


def refusal(tmp_path: Path, *arguments, **options) -> str:
    """The one line that a download ends in; nothing half written is left."""
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, *arguments, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("bases/*")) and not list(tmp_path.rglob("*.incomplete"))
    return str(caught.value)


def test_safetensors_config_and_tokenizer_arrive_and_no_pickle_or_code(server, tmp_path, repository):
    folder = prepare(tmp_path)
    assert (folder / WEIGHTS).read_bytes() == repository[WEIGHTS]
    kept = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, "README.md"}
    assert server.fetched() == kept and {path.name for path in folder.iterdir()} == kept | {"base.json"}
    assert not any(path.is_symlink() for path in folder.iterdir())
    manifest = read_json(folder / "base.json")
    assert (manifest["origin"], manifest["revision"], manifest["taken_from"]) == (ID, COMMIT, "hub")
    assert load_base(folder).model.dtype == torch.float32


def test_what_arrived_once_is_not_fetched_again_even_without_a_network(server, tmp_path, monkeypatch):
    prepare(tmp_path)
    server.asked.clear()
    shutil.rmtree(tmp_path / "bases")
    prepare(tmp_path)
    assert not server.asked
    shutil.rmtree(tmp_path / "bases")
    point_to("http://127.0.0.1:1", monkeypatch)
    prepare(tmp_path)


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path, repository):
    server.broken[WEIGHTS] = [30 * CHUNK, 20 * CHUNK + 1]
    folder = prepare(tmp_path)
    ranges = [wanted for verb, name, wanted in server.asked if (verb, name) == ("GET", WEIGHTS)]
    assert ranges == [None, f"bytes={30 * CHUNK}-", f"bytes={50 * CHUNK}-"]
    assert (folder / WEIGHTS).read_bytes() == repository[WEIGHTS]


def test_a_connection_that_breaks_at_every_attempt_is_told_and_other_files_stay(server, tmp_path):
    server.broken[WEIGHTS] = [30 * CHUNK, *[0] * 9]
    line = refusal(tmp_path)
    says = r"model.safetensors: it could not be fetched from http\S+ \(.+\); fix: try again"
    assert re.match(f"someone/tiny-lm@87c71024:{says}", line)
    server.asked.clear()
    server.broken.clear()
    prepare(tmp_path)
    assert server.fetched() == {WEIGHTS}


def lose_network(server, tmp_path, monkeypatch, listed: bool) -> None:
    """A download breaks off; the next process finds no network and, unless `listed`, no list of the files."""
    server.broken[WEIGHTS] = [30 * CHUNK, *[0] * 9]
    refusal(tmp_path)
    point_to("http://127.0.0.1:1", monkeypatch)
    monkeypatch.setattr(_tree_cache, "_IN_MEMORY_TREE_CACHE", {})
    if not listed:
        shutil.rmtree(next((tmp_path / "cache").glob("*/trees")))


@pytest.mark.parametrize("offline", [False, True])
def test_what_broke_off_and_finds_no_network_names_the_file_and_the_network(offline, server, tmp_path, monkeypatch):
    lose_network(server, tmp_path, monkeypatch, listed=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    (next((tmp_path / "cache").glob("*/snapshots/*")) / "tokenizer.json").unlink()
    line = refusal(tmp_path)
    says = r"model.safetensors: it and 1 more could not be fetched from http\S+ \(.+\); fix: .*`bases_root`"
    assert re.match(f"someone/tiny-lm@87c71024:{says}", line)


def test_a_part_of_a_repository_is_never_taken_for_the_whole(server, tmp_path, monkeypatch):
    lose_network(server, tmp_path, monkeypatch, listed=False)
    line = refusal(tmp_path)
    says = r"the cache has files of it but no list of all, and http\S+ gave none; fix: .*`bases_root`"
    assert re.match(f"someone/tiny-lm@87c71024: {says}", line)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_wrong_checksum_is_noticed_and_nothing_of_it_kept(name, server, tmp_path, repository):
    server.served[name] = repository[name][:-1] + b"!"
    line = refusal(tmp_path)
    assert re.match(
        rf"someone/tiny-lm@87c71024:{name}: it came with a wrong checksum and was thrown away; expec", line
    )
    assert not list((tmp_path / "cache").rglob(name))
    server.served.clear()
    assert (prepare(tmp_path) / name).read_bytes() == repository[name]


def test_a_file_that_is_listed_but_missing_is_named(server, tmp_path):
    server.gone.add("tokenizer.json")
    assert re.match(
        r"someone/tiny-lm@87c71024:tokenizer.json: a file that the hub lists is missing there", refusal(tmp_path)
    )


@pytest.mark.parametrize(
    ("name", "line"), [("tokenizer.json", "no whole tokenizer"), (WEIGHTS, "no weights; expected")]
)
def test_a_repository_without_tokenizer_or_with_pickles_alone_is_told(name, line, server, tmp_path):
    del server.files[name]
    assert line in refusal(tmp_path)


@pytest.mark.parametrize("token", [None, "hf_of_someone"])
def test_a_gated_repository_says_how_to_be_let_in(token, server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: token)
    server.gated = True
    told = (
        rf"someone/tiny-lm@87c71024: the repository is gated; fix: accept its licence at http\S+/{ID} and set HF_TOKEN"
    )
    assert re.match(told, refusal(tmp_path))


@pytest.mark.parametrize("endpoint", ["http://user:hunter2@127.0.0.1:1", "http://hunter2@127.0.0.1:1"])
def test_no_secret_of_ones_own_is_repeated_or_kept(endpoint, server, tmp_path, monkeypatch):
    token = "hf_" + "hunter2" * 5
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: token)
    folder = prepare(tmp_path)
    assert not [path for path in folder.iterdir() if b"hunter2" in path.read_bytes()]
    shutil.rmtree(tmp_path / "bases")
    shutil.rmtree(tmp_path / "cache")
    point_to(endpoint, monkeypatch)
    assert "could not be fetched from http://…@127.0.0.1:1" in (line := refusal(tmp_path))
    assert "hunter2" not in line


def test_an_unknown_repository_and_an_unknown_commit_are_told(server, tmp_path):
    assert "no such repository at http" in refusal(tmp_path, "someone/else")
    line = refusal(tmp_path, commit="0" * 40)
    assert line.startswith("someone/tiny-lm@00000000: no such commit") and "check `revision`" in line


@pytest.mark.parametrize("kind", [AttributeError, RuntimeError])
def test_a_client_that_another_thread_has_closed_is_a_lost_connection(kind, server, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise kind("the client has been closed")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert "could not be fetched from http" in refusal(tmp_path)


def test_without_a_network_the_other_way_is_told(server, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
        line = refusal(tmp_path)
    assert "could not be fetched" in line and "put the folder where `bases_root` says" in line


def test_the_cache_names_files_by_checksums_that_are_checked(tmp_path):
    content = b"some text"
    for digest, name in ((hub.file_sha256, hashlib.sha256(content).hexdigest()), (hub.git_sha1, git_sha1(content))):
        (tmp_path / name).write_bytes(content)
        assert digest(tmp_path / name) == name
