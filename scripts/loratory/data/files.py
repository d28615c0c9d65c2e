"""Reading bytes that may be compressed; writing files that appear whole or not at all."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from loratory.errors import InputError

BLOCK = 1 << 20
GZIP = b"\x1f\x8b"
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8 with byte-order mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yields a path beside `path`; it takes `path`'s place only if the block succeeds.

    The block may write a file or make a folder. A block that fails leaves nothing behind; what a killed process left
    goes when `path` is written again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    remove_path(aside)
    try:
        yield aside
        if aside.is_dir():
            remove_path(path)
        os.replace(aside, path)
    finally:
        remove_path(aside)


def remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Sorted keys, one trailing newline: the same value gives the same bytes."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    return json.loads(Path(path).read_text())


def file_sha256(path: Path | str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_bytes(path: Path | str) -> IO[bytes]:
    """A binary stream of the file's content, decompressed when it starts with the gzip magic.

    Raises:
        InputError: the file is missing, empty, or text in another encoding than UTF-8 (by its byte-order mark).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", expected="a readable file", reason="missing")
    with open(path, "rb") as stream:
        head = stream.read(3)
    if not head:
        raise InputError(path, "the file is empty", expected="at least one record", reason="empty")
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            raise InputError(path, "wrong text encoding", name, "plain UTF-8", "re-encode the file", "encoding")
    if head.startswith(GZIP):
        from isal import igzip

        return igzip.open(path, "rb")
    return open(path, "rb")


def read_blocks(path: Path | str, size: int = BLOCK) -> Iterator[bytes]:
    """Yields the (decompressed) content in blocks of about `size` bytes.

    Raises:
        InputError: as `open_bytes`; also when a gzip file ends early or is damaged.
    """
    from isal import igzip

    done = 0
    with open_bytes(path) as stream:
        while True:
            try:
                block = stream.read(size)
            except (EOFError, zlib.error, igzip.BadGzipFile, OSError) as error:
                what = f"the gzip file ends early or is damaged after {done} bytes of content"
                raise InputError(path, what, error, "a whole gzip file", "fetch it again", "gzip") from error
            if not block:
                return
            done += len(block)
            yield block


def read_lines(path: Path | str, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yields `(line number from 1, text without its line end)`, decoded strictly.

    Raises:
        InputError: as `read_blocks`; also when a line is not `encoding`.
    """
    number, rest = 0, b""
    for block in read_blocks(path):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            yield number, decode_line(line, path, number, encoding)
    if rest:
        yield number + 1, decode_line(rest, path, number + 1, encoding)


def decode_line(line: bytes, path: Path | str, number: int, encoding: str) -> str:
    try:
        return line.rstrip(b"\r").decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}:{number}",
            f"not {encoding} at byte {error.start} of the line",
            repr(line[error.start : error.start + 4]),
            f"{encoding} text",
            "set `encoding:` of this source (latin-1, gb18030, …) or re-encode the file",
            "encoding",
        ) from None
