"""Transcript and gene in the FASTA headers of those who publish or assemble transcripts."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loratory.data.files import read_lines
from loratory.domains.lncrna.sources import HeaderFormat
from loratory.errors import InputError

GENE = re.compile(r"(ENS[A-Z]*G\d+|FBgn\d+|WBGene\d+|AT\dG\d+)(\.\d+)?(_PAR_Y)?")
TRANSCRIPT = re.compile(r"(ENS[A-Z]*T\d+|FBtr\d+)(\.\d+)?(_PAR_Y)?|AT\dG\d+\.\d+")
VERSION = re.compile(r"(\.\d+)?(_PAR_Y)?$")  # X and Y copies of a pseudoautosomal gene are one gene
REFSEQ = re.compile(r"(?:gi\|\d+\|ref\|)?([NX][MR]_\d+(?:\.\d+)?)\|?(?:\s.*)?")
SYMBOL = re.compile(r"\(([^()]+)\)(?:,[^()]*)?$")  # `… helicase 11 like 1 (DDX11L1), transcript variant 1, mRNA`
TAG = re.compile(r"\[(?:GeneID|gene)=([^\]]+)\]")  # `[gene=DDX11L1] [GeneID=100287102]` of NCBI's own downloads

Parts = tuple[str, str]  # id of the transcript; of its gene without a version, "" where the header names none


def without_version(id: str) -> str:
    return VERSION.sub("", id)


def pipe_fields(header: str) -> list[str]:
    return header.split(None, 1)[0].removesuffix("|").split("|")


def parse_gencode(header: str) -> Parts | None:
    """`transcript|gene|…|…|name|gene name|length|…`"""
    fields = pipe_fields(header)
    if len(fields) < 7 or not fields[0] or GENE.fullmatch(fields[0]) or fields[0] == "gi":
        return None
    return fields[0], "" if fields[1] == "-" else without_version(fields[1])


def parse_biomart(header: str) -> Parts | None:
    """Ensembl's identifiers among fields that the user chose, in any order."""
    fields = pipe_fields(header)
    transcript = next((field for field in fields if TRANSCRIPT.fullmatch(field)), None)
    gene = next((field for field in fields if GENE.fullmatch(field)), None)
    return (transcript, without_version(gene)) if len(fields) > 1 and transcript and gene else None


def parse_ensembl(header: str) -> Parts | None:
    found = re.search(r"\sgene:(\S+)", header)
    return (header.split(None, 1)[0], without_version(found[1])) if found else None


def parse_refseq(header: str) -> Parts | None:
    found, gene = REFSEQ.fullmatch(header), TAG.search(header) or SYMBOL.search(header)
    return (found[1], gene[1] if gene else "") if found else None


def parse_gffread(header: str) -> Parts | None:
    found = re.search(r"\sgene(?:_id)?=(\S+)", header)
    return (header.split(None, 1)[0], found[1]) if found else None


def parse_name(pattern: str) -> Callable[[str], Parts | None]:
    """A parser of headers whose first word is a gene's name with the number of a transcript behind it."""

    def parse(header: str) -> Parts | None:
        name = header.split(None, 1)[0]
        found = re.fullmatch(pattern, name)
        return (name, found[1]) if found else None

    return parse


@dataclass(frozen=True)
class Writer:
    """Who writes headers of one form.

    Attributes:
        parse: header -> its parts, None if it is not of this form.
        example: of such a header.
    """

    parse: Callable[[str], Parts | None]
    example: str


WRITERS = {  # in the order in which `auto` tries them
    "gencode": Writer(parse_gencode, "`ENST….1|ENSG….1|…` of at least 7 fields, the 7th the length"),
    "biomart": Writer(parse_biomart, "`ENSG…|ENST…|…`, in any order"),
    "ensembl": Writer(parse_ensembl, "`id … gene:ID …`"),
    "refseq": Writer(parse_refseq, "`NR_046018.2 … (DDX11L1), …`, with `gi|…|ref|` before it or not"),
    "gffread": Writer(parse_gffread, "`id gene=ID`"),
    "trinity": Writer(parse_name(r"(.+_g\d+)_i\d+"), "`TRINITY_DN1_c0_g1_i1`"),
    "stringtie": Writer(parse_name(r"((?:MSTRG|STRG|PB)\.\d+)\.\d+"), "`MSTRG.1.1`, `PB.1.1`"),
    "lncipedia": Writer(parse_name(r"(?!chr)([A-Za-z][\w.-]*):\d+"), "`LINC01409:1`"),
}


def parse_header(where: str, header: str, length: int, form: HeaderFormat) -> Parts:
    """The transcript and its gene; the gene is "" where none is named.

    Args:
        where: file and record, for the error. length: of the sequence, which GENCODE's headers state.

    Raises:
        InputError: the header is not of this form, or states another length than the sequence has.
    """
    name = header.split(None, 1)[0]
    if form == "plain":
        return name, ""
    for key, writer in WRITERS.items():
        parts = writer.parse(header) if form in (key, "auto") else None
        if parts is not None:
            if key == "gencode":
                check_length(where, pipe_fields(header), length)
            return parts
    if form == "auto":
        return name, ""
    what = f"no header of the form `{form}`"
    raise InputError(where, what, header, WRITERS[form].example, "set `header: auto` or `header: plain`", "header")


def check_length(where: str, fields: list[str], length: int) -> None:
    """Raises:
    InputError: the seventh field of a GENCODE header is not the length of the sequence.
    """
    expected = WRITERS["gencode"].example
    if not fields[6].isdecimal():
        what, fix = "no length in the 7th field of a GENCODE header", "set `header: plain`"
        raise InputError(where, what, fields[6], expected, fix, "gencode_header")
    if fields[6].lstrip("0") != str(length):
        what = f"the header says {fields[6]} nucleotides, the sequence has {length}"
        fix = "fetch the file again: it may be truncated"
        raise InputError(where, what, fields[0], "equal lengths", fix, "gencode_length")


def read_gene_table(path: Path | str | None) -> dict[str, str]:
    """{transcript: gene} of a table with the two in its first columns, parted by tabs or commas; {} of no table.

    Raises:
        InputError: a row without a second column, or one transcript with two genes.
    """
    genes: dict[str, str] = {}
    for number, line in read_lines(path) if path else ():
        if not line.strip():
            continue
        transcript, *rest = (cell.strip() for cell in line.split("\t" if "\t" in line else ","))
        if not rest or not transcript or not rest[0]:
            what = "no gene in this row"
            raise InputError(f"{path}:{number}", what, line, "transcript and gene, parted by a tab or comma")
        if genes.setdefault(transcript, rest[0]) != rest[0]:
            what = f"two genes of one transcript, {genes[transcript]} and {rest[0]}"
            raise InputError(f"{path}:{number}", what, transcript, "one gene", "remove one row")
    return genes
