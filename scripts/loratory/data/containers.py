"""Whether an audio file holds all that its header says: libsndfile reads what is there, and says nothing."""

import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Literal

from loratory.errors import InputError

NO_LENGTH = 2**63 - 1  # frames that libsndfile reports of a FLAC that was written to a pipe
UNKNOWN_SIZES = (0xFFFFFFFF, 2**64 - 1)  # what a header says when it was written before its length was known
TAIL = 1 << 16  # bytes; a page of Ogg is shorter
MP3_HEAD = 1 << 12  # bytes of a first frame and what may stand before it


@dataclass(frozen=True)
class Chunks:
    """A container of named chunks.

    Attributes:
        start: of the first chunk. name, size: bytes of these two fields. order: of the size's bytes.
        counted: whether a chunk's size counts its name and size. align: chunks begin at multiples of it.
        data: how the name of the chunk with the samples begins.
    """

    start: int
    name: int
    size: int
    order: Literal["little", "big"]
    counted: bool
    align: int
    data: bytes


CHUNKED = {
    b"RIFF": Chunks(12, 4, 4, "little", False, 2, b"data"),
    b"RIFX": Chunks(12, 4, 4, "big", False, 2, b"data"),
    b"RF64": Chunks(12, 4, 4, "little", False, 2, b"data"),
    b"riff": Chunks(40, 16, 8, "little", True, 8, b"data"),  # Sony's W64
    b"FORM": Chunks(12, 4, 4, "big", False, 2, b"SSND"),
    b"caff": Chunks(8, 4, 8, "big", False, 1, b"data"),
}


def check_whole(path: Path, frames: int) -> None:
    """Holds the bytes of a file against its header, whatever its container.

    Args:
        frames: that libsndfile announced.

    Raises:
        InputError: the file is cut short, or nobody could tell: its container or the way it was written has no length.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        end = None if frames == NO_LENGTH else stated_end(file, file.read(16), size)
    if end is None:
        what, expected = "audio file with no length to check", "WAV, AIFF, AU, NIST, W64, CAF, FLAC, Ogg or MP3"
        fix = "encode it again as FLAC, into a file and not into a pipe"
        raise InputError(path, what, expected=f"{expected} whose header says it", fix=fix, reason="audio_format")
    if size < end:
        raise cut_error(path)


def cut_error(path: Path) -> InputError:
    what, expected = f"audio file is cut short after {os.stat(path).st_size} bytes", "all that its header counts"
    return InputError(path, what, expected=expected, fix="fetch it again", reason="audio_cut")


def stated_end(file: IO[bytes], head: bytes, size: int) -> int | None:
    """How many bytes the file has by its header: `size` where the decoder itself counts, more where the last part is
    missing; None where nothing says it."""
    if head.startswith(b"fLaC"):
        return size  # libsndfile counts its samples
    if head.startswith(b"OggS"):
        return ogg_end(file, size)
    if head.startswith(b"NIST_1A"):
        return nist_end(file)
    if head.startswith((b".snd", b"dns.")):
        return au_end(head)
    if head[:4] in CHUNKED:
        return chunked_end(file, head, size)
    return size if has_mp3_length(file) else None


def chunked_end(file: IO[bytes], head: bytes, size: int) -> int | None:
    """The end of the whole and of the chunk with the samples, whichever is later."""
    kind = CHUNKED[head[:4]]
    whole = 0
    if head[:4] in (b"RIFF", b"RIFX", b"FORM"):
        stated = int.from_bytes(head[4:8], kind.order)
        whole = 0 if stated in (0, *UNKNOWN_SIZES) else stated + 8 - 1  # some writers forget the pad byte
    at, long_size = kind.start, None
    while at + kind.name + kind.size <= size:
        file.seek(at)
        name = file.read(kind.name)
        length = int.from_bytes(file.read(kind.size), kind.order) - kind.counted * (kind.name + kind.size)
        body = at + kind.name + kind.size
        if name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if name.lower().startswith(kind.data.lower()):
            if head[:4] == b"RF64" and long_size is not None:
                length = long_size
            unknown = length in UNKNOWN_SIZES or (length == 0 and body < size and not whole)
            return None if unknown else max(whole, body + length)
        if length < 0:
            return None
        at = body + length + -length % kind.align
    return whole or None


def au_end(head: bytes) -> int | None:
    order: Literal["big", "little"] = "big" if head.startswith(b".snd") else "little"
    offset, length = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))
    return None if length in UNKNOWN_SIZES else offset + length


def nist_end(file: IO[bytes]) -> int | None:
    """Of a NIST SPHERE file, by its fields."""
    file.seek(8)
    size = int(found[1]) if (found := re.fullmatch(rb"\s*(\d+)\s*", file.read(8))) else 0
    fields = dict(
        re.findall(rb"^(sample_count|channel_count|sample_n_bytes) -\w+ (\d{1,15})\b", file.read(size), re.MULTILINE)
    )
    return size + prod(map(int, fields.values())) if len(fields) == 3 else None


def ogg_end(file: IO[bytes], size: int) -> int:
    """The end of the last page if that closes its stream, else more than there is."""
    file.seek(max(0, size - TAIL))
    tail = file.read()
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return size + 1
    closes = page[5] & 4
    return size - len(page) + 27 + page[26] + sum(page[27 : 27 + page[26]]) + (not closes)


def has_mp3_length(file: IO[bytes]) -> bool:
    """Whether an MP3's first frame counts the others, which libsndfile then holds against them."""
    file.seek(0)
    tag = file.read(10)
    at = 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0))) if tag[:3] == b"ID3" else 0
    file.seek(at)
    first = file.read(MP3_HEAD)
    found = re.search(rb"(?:Xing|Info)...(.)", first, re.DOTALL)
    return bool(found and found[1][0] & 1)
