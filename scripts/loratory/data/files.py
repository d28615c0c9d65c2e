"""Reading bytes that may be compressed; writing files that appear whole or not at all."""

import bz2
import codecs
import hashlib
import json
import lzma
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, cast

from isal import igzip, igzip_lib

from loratory.errors import InputError, short_value

BLOCK = 1 << 20
LISTING = ".files.json"  # in a folder that a job made: the names of all files in it
LONGEST = 1 << 28  # bytes of a line or record: beyond, it is a bomb or no text, and memory would be filled with it
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # without members
}
# What the decompressors raise for a damaged file; of zip archives also those for what they cannot do.
DAMAGED: tuple[type[Exception], ...] = (
    *(EOFError, OSError, ValueError, NotImplementedError, RuntimeError),
    *(zlib.error, cast("type[Exception]", igzip_lib.IsalError), lzma.LZMAError, zipfile.BadZipFile),
)


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


def check_writable(folder: Path | str) -> None:
    """Raises: InputError where nothing may be written into a folder, or made on the way to it."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    try:
        if not os.access(place, os.W_OK):
            raise PermissionError
        TemporaryFile(dir=place).close()  # a file system that nobody can write into may say that one may
    except OSError:
        what, fix = "nothing can be written here", "make it writable, or work elsewhere"
        raise InputError(place, what, expected=f"a writable folder for {folder}", fix=fix) from None


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


def note_files(folder: Path | str) -> None:
    """Writes down which files a folder holds, for `lost_files`."""
    found = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    write_json(Path(folder, LISTING), sorted(str(path.relative_to(folder)) for path in found))


def lost_files(folder: Path | str) -> list[str]:
    """Names of noted files that are no longer in a folder; Snakemake sees folders as a whole, and none of it. A note
    that a crashed machine has left empty or cut is lost itself."""
    listing = f"{folder}/{LISTING}"  # no Path: a plan asks for thousands
    try:
        return (
            [name for name in read_json(listing) if not Path(folder, name).exists()] if os.path.isfile(listing) else []
        )
    except ValueError:
        return [LISTING]


def file_sha256(path: Path | str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_bytes(path: Path | str) -> IO[bytes]:
    """A binary stream of the file's content, decompressed where its first bytes say how (gzip, bz2, xz, zstd, or a zip
    archive of one member).

    Raises:
        InputError: the file is missing, empty, or UTF-16 by its byte-order mark; an archive is damaged or holds
            several members.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", expected="a readable file", reason="missing")
    with open(path, "rb") as stream:
        head = stream.read(6)
    if not head:
        raise InputError(path, "the file is empty", expected="at least one record", reason="empty")
    check_encoding_mark(path, head)
    method = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    return open_compressed(path, method) if method else open(path, "rb")


def require_distinct_files(files: Iterable[tuple[str, str]]) -> None:
    """Of `(role, path)`: no file stands there twice, under whatever path.

    Raises:
        InputError: one does; its records would all be copies, or contradict themselves.
    """
    roles: dict[str, str] = {}
    for role, path in files:
        place = os.path.realpath(path)
        if place in roles:
            what = f"the same file is given twice, as `{roles[place]}` and as `{role}`"
            raise InputError(path, what, expected="each file once", fix="remove one", reason="same_file")
        roles[place] = role


def check_encoding_mark(where: Path | str, head: bytes) -> None:
    """Raises:
    InputError: the first bytes of a text are the byte-order mark of UTF-16.
    """
    if head.startswith(UTF16_MARKS):
        raise InputError(where, "wrong text encoding", "UTF-16", "UTF-8", "re-encode the file", "encoding")


def open_compressed(path: Path, method: str) -> IO[bytes]:
    """The content of a file that is compressed by one of COMPRESSED; damage shows when it is read."""
    if method == "gzip":
        return igzip.open(path, "rb")  # three times as fast as the standard library's
    if method == "bz2":
        return bz2.open(path)
    if method == "xz":
        return lzma.open(path)
    if method == "zstd":
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    try:
        archive = zipfile.ZipFile(path)
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) == 1:
            return archive.open(members[0])
    except DAMAGED as error:
        raise damaged_error(path, 0, error) from None
    what, expected = "a zip archive of several files", "one file in it"
    raise InputError(path, what, len(members), expected, "unpack it and name the file that is meant", "archive")


def read_blocks(path: Path | str, size: int = BLOCK) -> Iterator[bytes]:
    """Yields the decompressed content in blocks of about `size` bytes, without a UTF-8 byte-order mark.

    Raises:
        InputError: as `open_bytes`; also when a compressed file ends early or is damaged.
    """
    done = 0
    with open_bytes(path) as stream:
        while True:
            try:
                block = stream.read(size)
            except DAMAGED as error:
                raise damaged_error(path, done, error) from None
            if not block:
                return
            yield block if done else block.removeprefix(UTF8_MARK)
            done += len(block)


def first_bytes(path: Path | str, n: int) -> bytes:
    """The first `n` bytes of `read_blocks`, or as many as there are: by them formats are told apart."""
    return next(read_blocks(path, n), b"")


def damaged_error(path: Path | str, done: int, error: Exception) -> InputError:
    what = f"the compressed file ends early or is damaged after {done} bytes of content"
    return InputError(path, what, short_value(error), "a whole file", "fetch it again", "damaged")


def check_size(size: int, where: Path | str) -> None:
    """Raises:
    InputError: a line or record of so many bytes is no text that anybody wrote.
    """
    if size > LONGEST:
        what, expected = f"more than {LONGEST >> 20} MB without an end", "shorter lines and records"
        raise InputError(where, what, expected=expected, fix="is this the right file?", reason="too_large")


def read_byte_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    """Yields `(line number from 1, bytes without the line feed)`.

    Raises:
        InputError: as `read_blocks`.
    """
    number, rest = 0, b""
    for block in read_blocks(path):
        *lines, rest = (rest + block).split(b"\n")
        check_size(len(rest), f"{path}:{number + len(lines) + 1}")
        for line in lines:
            number += 1
            yield number, line
    if rest:
        yield number + 1, rest


def read_lines(path: Path | str, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yields `(line number from 1, text without its line end)`, decoded strictly.

    Raises:
        InputError: as `read_blocks`; also when a line is not `encoding`, or is UTF-8 and `encoding` is not.
    """
    decoder = TextDecoder(path, encoding)
    for number, line in read_byte_lines(path):
        yield number, decoder.decode_line(line, number)
    decoder.check_encoding()


class TextDecoder:
    """Lines of one file as text. Any bytes are latin-1, so that UTF-8 would be misread in silence: a file in which
    every line with other letters than ASCII's is UTF-8 is taken for that."""

    def __init__(self, path: Path | str, encoding: str) -> None:
        self.path, self.encoding = path, encoding
        self.first_utf8 = 0  # line
        self.doubtful = codecs.lookup(encoding).name not in ("utf-8", "ascii")

    def decode_line(self, line: bytes, number: int) -> str:
        """Raises:
        InputError: the line is not of the encoding.
        """
        if self.doubtful and not line.isascii():
            self.note_letters(line, number)
        try:
            return line.rstrip(b"\r").decode(self.encoding)
        except UnicodeError as error:
            start = error.start if isinstance(error, UnicodeDecodeError) else 0  # not every codec says where
            raise InputError(
                f"{self.path}:{number}",
                f"not {self.encoding} at byte {start} of the line",
                repr(line[start : start + 4]),
                f"{self.encoding} text",
                "set `encoding:` of this source (latin-1, gb18030, …) or re-encode the file",
                "encoding",
            ) from None

    def note_letters(self, line: bytes, number: int) -> None:
        try:
            line.decode()
        except UnicodeDecodeError:
            self.doubtful, self.first_utf8 = False, 0
        else:
            self.first_utf8 = self.first_utf8 or number

    def check_encoding(self) -> None:
        """To be called behind the last line.

        Raises:
            InputError: the file is UTF-8, and was said to be something else.
        """
        if self.first_utf8:
            what, fix = f"the text is UTF-8, and would be misread as {self.encoding}", "set `encoding: utf-8`"
            raise InputError(f"{self.path}:{self.first_utf8}", what, expected="UTF-8", fix=fix, reason="encoding")
