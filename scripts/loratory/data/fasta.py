"""Streaming FASTA reader on bytes, plain or compressed.

Not a library's: dnaio, pyfastx and Biopython number no records, so that an error could not name one, and read what is
no FASTA without a word.
"""

from collections.abc import Iterator
from pathlib import Path

from loratory.data.files import TextDecoder, check_size, read_blocks
from loratory.data.ledger import Ledger
from loratory.errors import InputError


def read_fasta(
    path: Path | str, ledger: Ledger, encoding: str = "utf-8", remember_ids: bool = True
) -> Iterator[tuple[str, str, str, bytes]]:
    """Yields `(file:record number, id, whole header, sequence without line ends)`.

    The id is the header up to its first blank. Sequences lose their white space and are else handed on as they stand
    (case, any letters): alphabets are the caller's business. Lines end in LF, CRLF or CR. Records without id or
    sequence, and repeated ids, go to `ledger.note_error`.

    Args:
        remember_ids: False leaves repeated ids to the caller, and memory does not grow with the file.

    Raises:
        InputError: the file is empty, is not FASTA, is a damaged gzip file, or a header is not UTF-8.
    """
    first_seen: dict[str, int] = {}
    decoder = TextDecoder(path, encoding)
    for number, raw in enumerate(read_raw_records(path), start=1):
        ledger.count_record()
        where = f"{path}:{number}"
        line, _, body = raw.partition(b"\n")
        header = decoder.decode_line(line, number).strip()
        id, sequence = header.split(None, 1)[0] if header else "", body.translate(None, b" \t\r\n\v\f")
        if not id:
            ledger.note_error(InputError(where, "header without an id", ">", "`>id description`", reason="no_id"))
        elif not sequence:
            error = InputError(where, "record without a sequence", id, "at least one letter", reason="no_sequence")
            ledger.note_error(error, id)
        elif id in first_seen:
            what = f"duplicate id, first seen at record {first_seen[id]}"
            ledger.note_error(InputError(where, what, id, "unique ids", "rename or remove one", "duplicate_id"), id)
        else:
            if remember_ids:
                first_seen[id] = number
            yield where, id, header, sequence
    decoder.check_encoding()


def read_raw_records(path: Path | str) -> Iterator[bytes]:
    """Yields each record's bytes without its leading `>`."""
    rest = None
    number = 1
    for block in read_blocks(path):
        block = block.replace(b"\r", b"\n") if b"\r" in block else block  # of CRLF an empty line is left
        if rest is None:
            block = block.lstrip()
            if not block:
                continue
            if not block.startswith(b">"):
                start = block[:20].decode("utf-8", "replace")
                raise InputError(f"{path}:1", "not FASTA", start, "a first character `>`", reason="not_fasta")
            rest, block = b"", block[1:]
        *records, rest = (rest + block).split(b"\n>")
        yield from records
        number += len(records)
        check_size(len(rest), f"{path}:{number}")
    if rest is None:
        raise InputError(path, "the file holds no records", expected="FASTA records", reason="empty")
    yield rest
