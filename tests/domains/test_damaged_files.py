"""Damaged files of others: each is read or refused in one line, and every record is kept or accounted for."""

import contextlib
import gzip
import io
import json
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from archives import zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratory import registry
from loratory.config import domain_options, read_config
from loratory.data.audio import inspect_audio
from loratory.data.ledger import Ledger
from loratory.domains.dataset import gather_records
from loratory.errors import InputError
from loratory.strict_yaml import load_yaml

SECONDS = 60  # beyond, a reader hangs; the usual is a hundredth of one
LONGEST_LINE = 2000
FIELDS = re.compile(rb"[^\t\n,:;|\"{}\[\]]+")
NUMBERS = re.compile(rb"\d+(\.\d+)?")
STRANGE = (
    *(b"\0", b"\x1b[2J", b"\r", b"\n", b"\t", b" ", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(
        b'"',
        b"'",
        b"\\",
        b",",
        b";",
        b":",
        b"::",
        b"|",
        b"{",
        b"]",
        b">",
        b"#",
        b"../",
        b"%s",
        b"<script>",
        b"-",
        b"*",
    ),
    *(b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"null", b"true", b"nan", b"inf", b"-1", b"0", b"1e999", b"9" * 30),
    *(
        b"9" * 5000,
        b"A" * 300,
        b"[" * 50_000,
        b"loop_",
        b"data_",
        b"MODEL",
        b"_",
        b"{x}",
        b"\\ud800",
        "é".encode(),
        "中".encode(),
    ),
)


class Damage(NamedTuple):
    """What happens to a file: `kind` is one of KINDS, `place` a share of its length."""

    kind: str
    place: float
    piece: bytes


def at_place(damage: Damage, content: bytes) -> int:
    return int(damage.place * len(content))


def flip_bit(content: bytes, damage: Damage) -> bytes:
    place = at_place(damage, content)
    return content[:place] + bytes([content[place] ^ 1 << damage.piece[0] % 8]) + content[place + 1 :]


def insert_piece(content: bytes, damage: Damage) -> bytes:
    place = at_place(damage, content)
    return content[:place] + damage.piece + content[place:]


def replace_match(pattern: re.Pattern[bytes], content: bytes, damage: Damage, piece: bytes) -> bytes:
    """`content` with `piece` in place of the first match behind a place."""
    found = pattern.search(content, at_place(damage, content))
    return content[: found.start()] + piece + content[found.end() :] if found else content


def change_lines(content: bytes, damage: Damage, change: Callable[[bytes], list[bytes]]) -> bytes:
    lines = content.split(b"\n")
    place = at_place(damage, content[: len(lines)])
    return b"\n".join([*lines[:place], *change(lines[place]), *lines[place + 1 :]])


KINDS: dict[str, Callable[[bytes, Damage], bytes]] = {
    "flip a bit": flip_bit,
    "insert": insert_piece,
    "cut off": lambda content, damage: content[: at_place(damage, content)],
    "cut out": lambda content, damage: content[: at_place(damage, content)] + content[at_place(damage, content) + 7 :],
    "empty a field": lambda content, damage: replace_match(FIELDS, content, damage, b""),
    "change a field": lambda content, damage: replace_match(FIELDS, content, damage, damage.piece),
    "change a number": lambda content, damage: replace_match(NUMBERS, content, damage, damage.piece),
    "double a line": lambda content, damage: change_lines(content, damage, lambda line: [line, line]),
    "lose a line": lambda content, damage: change_lines(content, damage, lambda line: []),
    "compress": lambda content, damage: gzip.compress(content, mtime=0),
}
DAMAGES = st.builds(Damage, st.sampled_from([*KINDS]), st.floats(0, 1, exclude_max=True), st.sampled_from(STRANGE))


class Reader(NamedTuple):
    """What is read: `write` gives the sound {file: content}, `read` how much is in those of the current folder."""

    write: Callable[[], dict[str, bytes]]
    read: Callable[[], int]
    inputs: int = 130


def count_records(domain: str, source: dict[str, Any], **options: Any) -> int:
    """How many records files have; none is lost, and nothing that people are shown steers their terminals."""
    dataset = domain_options(domain, "Dataset", {"on_error": "skip", "max_reject_fraction": 1} | options)
    files, ledger = domain_options(domain, "Files", source), Ledger("skip")
    records = gather_records(registry.load_module("domain", domain, "build"), files, dataset, 0, ledger)
    assert ledger.n_in == len([*records]) + ledger.n_rejected.total()
    assert all(account.n_in >= account.n_rejected.total() for account in ledger.joined.values())
    for row in (row for account in (ledger, *ledger.joined.values()) for row in account.rows):
        assert all(cell.isprintable() for cell in row), row
    return len(records)


def text_of(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table_of(rows), stream, write_page_checksum=True)
    return stream.getvalue()


def jsonl_of(rows: list[dict[str, Any]]) -> bytes:
    return text_of(*map(json.dumps, rows))


def csv_of(rows: list[dict[str, Any]], separator: str = ",") -> bytes:
    return text_of(separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows))


def sequence_of(seed: int, letters: str, n: int) -> str:
    return "".join(np.random.default_rng(seed).choice([*letters], n))


PROTEINS = [sequence_of(seed, "ACDEFGHIKLMNPQRSTVWY", 60) for seed in range(4)]
TRANSCRIPTS = [sequence_of(seed, "ACGT", 240) for seed in range(6)]
HEADERS = (
    "UniRef50_A kinase n=2 Tax=Homo sapiens TaxID=9606 RepID=A_HUMAN",
    "sp|P1|B_HUMAN b OS=Homo OX=9606",
    "c",
    "d",
)
LABELS = {"enzyme": {"column": "EC number", "levels": 1}}


def protein_fasta() -> dict[str, bytes]:
    return {"a.fasta": text_of(*(f">{head}\n{letters}" for head, letters in zip(HEADERS, PROTEINS)))}


def protein_rows() -> list[dict[str, Any]]:
    return [
        {"id": f"p{i}", "sequence": letters, "family": "f" * (i % 2), "EC number": f"{1 + i % 3}.1.1.{i}; 2.7.-.-"}
        for i, letters in enumerate(PROTEINS)
    ]


def labelled_proteins() -> dict[str, bytes]:
    rows = [{"Entry": f"p{i}", "EC number": f"{1 + i}.1.1.1"} for i in range(len(PROTEINS))]
    fasta = text_of(*(f">p{i}\n{letters}" for i, letters in enumerate(PROTEINS)))
    return {"a.fasta": fasta, "labels.tsv": csv_of(rows, "\t")}


def transcript_fasta() -> dict[str, bytes]:
    def gencode(i: int) -> str:
        return f">ENST{i}.1|ENSG{i}.1|-|-|NAME-201|NAME|240|lncRNA|\n{TRANSCRIPTS[i]}"

    genes = csv_of([{"transcript": f"ENST{i}.1", "gene": f"G{i % 2}"} for i in range(6)], "\t")
    return {"c.fa": text_of(*map(gencode, range(3))), "n.fa": text_of(*map(gencode, range(3, 6))), "genes.tsv": genes}


def transcript_rows() -> list[dict[str, Any]]:
    return [
        {"id": f"t{i}", "sequence": letters, "label": ("mRNA", "lncRNA")[i % 2]}
        for i, letters in enumerate(TRANSCRIPTS)
    ]


ATOMS = {"N": (-1, 0.5, 0), "CA": (0, 0, 0), "C": (1, 0.5, 0), "O": (1, 1.5, 0)}  # Å from the Cα
RESIDUES = ("MET", "LYS", "SER", "ALA", "TRP", "GLY")
SITE = (
    "group_PDB",
    "label_atom_id",
    "label_comp_id",
    "label_asym_id",
    "label_seq_id",
    "Cartn_x",
    "Cartn_y",
    "Cartn_z",
)


def placed_atoms() -> Iterator[tuple[str, str, str, int, tuple[float, ...]]]:
    """(atom, residue, chain, number, point) of two chains."""
    for chain in "AB":
        for number, residue in enumerate(RESIDUES, start=1):
            for atom, (x, y, z) in ATOMS.items():
                yield atom, residue, chain, number, (3.8 * number + x, y, z)


def pdb_file() -> dict[str, bytes]:
    lines = [
        f"ATOM  {i:>5}  {atom:<3} {residue} {chain}{number:>4}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00"
        for i, (atom, residue, chain, number, (x, y, z)) in enumerate(placed_atoms(), start=1)
    ]
    return {"a.pdb": text_of("EXPDTA    X-RAY DIFFRACTION", "MODEL        1", *lines, "TER", "ENDMDL", "END")}


def cif_file() -> dict[str, bytes]:
    rows = [
        f"ATOM {atom} {residue} {chain} {number} {x:.3f} {y} {z}"
        for atom, residue, chain, number, (x, y, z) in placed_atoms()
    ]
    head = ("data_x", "_exptl.method 'X-RAY DIFFRACTION'", "_struct.title", ";a", ";", "loop_")
    return {"a.cif": text_of(*head, *(f"_atom_site.{name}" for name in SITE), *rows, "#")}


def chain_rows() -> list[dict[str, Any]]:
    def coords(n: int) -> dict[str, list[list[float]]]:
        return {atom: [[3.8 * k + x, y, z] for k in range(n)] for atom, (x, y, z) in ATOMS.items()}

    return [{"name": f"{i}abc.A", "seq": letters[:40], "coords": coords(40)} for i, letters in enumerate(PROTEINS[:2])]


TALK = [{"prompt": f"What is {n}?", "completion": f"number {n}", "group": f"g{n % 2}"} for n in range(4)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": str(n)}]} for n in "abc"
]
CHOICES = [{"prompt": f"Is {n} warm?", "choices": ["yes", "no"], "answer": ("no", "yes")[n % 2]} for n in range(3)]
RATED = [(user, item, (user + item) % 5 + 1, 1000 * user + item) for user in range(1, 5) for item in range(1, 5)]
LOOSE = {"k_core": 1, "min_history": 1}
STARS = {
    "format": "table",
    "scale": [1, 5, 1],
    "ratings_table": {"columns": {"user": "u", "item": "i", "rating": "r", "time": "t"}},
}


def csv_ratings() -> dict[str, bytes]:
    rated = [dict(zip(("userId", "movieId", "rating", "timestamp"), row)) for row in RATED]
    films = [{"movieId": n, "title": f'"Film {n}, The (1990)"', "genres": "Crime"} for n in range(1, 5)]
    return {"ratings.csv": csv_of(rated), "movies.csv": csv_of(films)}


def dat_ratings() -> dict[str, bytes]:
    rated = text_of(*("::".join(map(str, row)) for row in RATED))
    films = text_of(*(f"{n}::Film {n} (1990)::Crime" for n in range(1, 5)))
    users = text_of(*(f"{n}::M::25::12::55117" for n in range(1, 5)))
    return {"ratings.dat": rated, "movies.dat": films, "users.dat": users}


def hundred_k() -> dict[str, bytes]:
    films = (f"{n}|Film {n} (1990)|01-Jan-1990||http://a|" + "|".join("0" * 19) for n in range(1, 5))
    return {"u.data": text_of(*("\t".join(map(str, row)) for row in RATED)), "u.item": text_of(*films)}


def rated_rows() -> list[dict[str, Any]]:
    return [dict(zip("uirt", (f"u{row[0]}", f"i{row[1]}", *row[2:]))) for row in RATED]


def amazon_rows() -> list[dict[str, Any]]:
    return [
        {"reviewerID": f"A{user}", "asin": f"B{item}", "overall": float(stars), "unixReviewTime": time}
        for user, item, stars, time in RATED
    ]


def sound_of(seed: int, form: str = "WAV", seconds: float = 0.5, subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    soundfile.write(stream, samples, 16_000, format=form, subtype=subtype)
    return stream.getvalue()


def kaldi_folder() -> dict[str, bytes]:
    return {
        "one.wav": sound_of(1),
        "two.flac": sound_of(2, "FLAC", 2.0),
        "wav.scp": text_of("one one.wav", "two two.flac"),
        "segments": text_of("a-1 one 0.0 0.5", "a-2 two 0.0 1.0", "b-1 two 1.0 2.0"),
        "text": text_of("a-1 red ball", "a-2 it's a dog", "b-1 go <NOISE> home"),
        "utt2spk": text_of("a-1 a", "a-2 a", "b-1 b"),
        "spk2age": text_of("a 7", "b 9"),
        "spk2gender": text_of("a f", "b m"),
        "ctm": text_of("two 1 0.1 0.3 it's 0.9", "two 1 0.5 0.2 a 0.9", "two 1 0.8 0.1 dog 0.9"),
    }


def spoken_rows() -> list[dict[str, Any]]:
    return [
        {"id": f"s{n}", "audio": "one.wav", "text": "red ball", "speaker": "a", "start": 0, "end": 0.25 * n}
        for n in (1, 2)
    ]


def lhotse_manifests() -> dict[str, bytes]:
    source = {"type": "file", "channels": [0], "source": "one.wav"}
    sizes = {"sampling_rate": 16_000, "num_samples": 8000, "duration": 0.5, "channel_ids": [0]}
    recording = {"id": "one", "sources": [source], **sizes}
    said = {"recording_id": "one", "duration": 0.25, "channel": 0, "text": "red ball", "speaker": "a"}
    segments = [{"id": f"s{n}", "start": n / 4, **said, "custom": {"age": 7}} for n in range(2)]
    cut = {"id": "c", "start": 0, "duration": 0.5, "channel": 0, "type": "MonoCut", "recording": recording}
    lines = [recording, *segments, cut | {"supervisions": [segments[0] | {"id": "t"}]}]
    return {"one.wav": sound_of(1), "m.jsonl": jsonl_of(lines)}


def child_corpora() -> dict[str, bytes]:
    home, talk = "cmu_kids", "myst/data/train/002030/myst_002030_2014-03-18/myst_002030_2014-03-18_000"
    return {
        f"{home}/tables/speaker.tbl": text_of("ID\tLOC\tGR/AGE\tTOT\tBIN2", "", "fabm\tSUM95\t3/9\t100\t62"),
        f"{home}/tables/transcrp.tbl": text_of("fabm2aa1 a fish  swims"),
        f"{home}/kids/fabm/signal/fabm2aa1.sph": sound_of(3, "NIST", subtype="PCM_16"),
        f"{talk}.flac": sound_of(4, "FLAC"),
        f"{talk}.trn": text_of("it's like um magnets"),
    }


def libri_corpus() -> dict[str, bytes]:
    home = "dev/1/2/1-2"
    return {f"{home}-0000.flac": sound_of(5, "FLAC"), f"{home}.trans.txt": text_of("1-2-0000 A RED BALL")}


def config_file() -> dict[str, bytes]:
    return {"study.yaml": Path(__file__).parents[2].joinpath("config", "config.yaml").read_bytes()}


CLASSES = {"mRNA": "coding", "lncRNA": "noncoding"}
TAGS = {"tags": ["<...>"], "untranscribed": "drop", "held_out_sentences": "any"}
READERS: dict[str, Reader] = {
    "FASTA of proteins": Reader(protein_fasta, partial(count_records, "protein", {"fasta": "a.fasta"})),
    "FASTA of transcripts": Reader(
        transcript_fasta,
        partial(count_records, "lncrna", {"coding": ["c.fa"], "noncoding": ["n.fa"], "genes": "genes.tsv"}),
    ),
    "PDB": Reader(pdb_file, partial(count_records, "structure", {"chains": ["a.pdb"]}, min_length=1)),
    "mmCIF": Reader(cif_file, partial(count_records, "structure", {"chains": ["a.cif"]}, min_length=1)),
    "chains as JSON": Reader(
        lambda: {"a.jsonl": jsonl_of(chain_rows())},
        partial(count_records, "structure", {"chains": ["a.jsonl"]}, min_length=1),
    ),
    "CSV of proteins": Reader(
        lambda: {"a.csv": csv_of(protein_rows())},
        partial(count_records, "protein", {"tables": "a.csv", "columns": {"group": "family"}}, labels=LABELS),
    ),
    "parquet of proteins": Reader(
        lambda: {"a.parquet": parquet_of(protein_rows())}, partial(count_records, "protein", {"tables": "a.parquet"})
    ),
    "label tables": Reader(
        labelled_proteins,
        partial(count_records, "protein", {"fasta": "a.fasta", "labels": "labels.tsv"}, labels=LABELS),
    ),
    "TSV of transcripts": Reader(
        lambda: {"a.tsv": csv_of(transcript_rows(), "\t")},
        partial(count_records, "lncrna", {"tables": ["a.tsv"], "labels": CLASSES}),
    ),
    "prompts as JSON lines": Reader(
        lambda: {"a.jsonl": jsonl_of(TALK)}, partial(count_records, "text", {"records": "a.jsonl"})
    ),
    "chats as JSON lines": Reader(
        lambda: {"a.jsonl": jsonl_of(CHATS)}, partial(count_records, "text", {"records": "a.jsonl"})
    ),
    "choices as parquet": Reader(
        lambda: {"a.parquet": parquet_of(CHOICES)}, partial(count_records, "text", {"records": "a.parquet"})
    ),
    "prompts as CSV": Reader(lambda: {"a.csv": csv_of(TALK)}, partial(count_records, "text", {"records": "a.csv"})),
    "MovieLens": Reader(
        csv_ratings, partial(count_records, "recsys", {"ratings": "ratings.csv", "items": "movies.csv"}, **LOOSE)
    ),
    "MovieLens 1M": Reader(
        dat_ratings,
        partial(
            count_records,
            "recsys",
            {"ratings": "ratings.dat", "items": "movies.dat", "users": "users.dat"},
            **LOOSE,
        ),
    ),
    "MovieLens 100K": Reader(
        hundred_k, partial(count_records, "recsys", {"ratings": "u.data", "items": "u.item"}, **LOOSE)
    ),
    "MovieLens as an archive": Reader(
        lambda: {"ml.zip": zipped({f"ml/{name}": content for name, content in csv_ratings().items()})},
        partial(count_records, "recsys", {"ratings": "ml.zip"}, **LOOSE),
    ),
    "Amazon": Reader(
        lambda: {
            "a.json": jsonl_of(amazon_rows()),
            "m.json": jsonl_of([{"asin": f"B{n}", "title": f"Film {n}"} for n in range(1, 5)]),
        },
        partial(count_records, "recsys", {"ratings": "a.json", "items": "m.json", "format": "amazon"}, **LOOSE),
    ),
    "ratings as parquet": Reader(
        lambda: {
            "r.parquet": parquet_of(rated_rows()),
            "i.csv": csv_of([{"item": f"i{n}", "title": f"Film {n}"} for n in range(1, 5)]),
        },
        partial(
            count_records,
            "recsys",
            {
                "ratings": "r.parquet",
                "items": "i.csv",
                **STARS,
                "items_table": {"columns": {"item": "item", "title": "title"}},
            },
            positive=4,
            **LOOSE,
        ),
    ),
    "Kaldi": Reader(
        kaldi_folder, partial(count_records, "speech", {"folders": ["."], "audio_root": "."}, **TAGS), 260
    ),
    "tables of utterances": Reader(
        lambda: {"one.wav": sound_of(1), "a.csv": csv_of(spoken_rows())},
        partial(count_records, "speech", {"tables": "a.csv", "audio_root": "."}, **TAGS),
    ),
    "lhotse": Reader(lhotse_manifests, partial(count_records, "speech", {"manifests": "m.jsonl"}, **TAGS)),
    "CMU Kids and MyST": Reader(
        child_corpora, partial(count_records, "speech", {"cmu_kids": ["."], "myst": ["myst"]}, **TAGS)
    ),
    "LibriSpeech": Reader(libri_corpus, partial(count_records, "speech", {"librispeech": ["."]}, **TAGS), 60),
    "config": Reader(config_file, lambda: len(read_config(load_yaml("study.yaml"), "study.yaml").bases)),
} | {
    f"audio as {form}": Reader(
        partial(lambda form: {"a.audio": sound_of(6, form)}, form), lambda: len(inspect_audio("a.audio")[0]), 60
    )
    for form in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "NIST", "AU", "CAF", "RF64")
}


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Ends what is inside after so many seconds, whatever it catches."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt(f"nothing came back in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def place_files(files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def outcome(read: Callable[[], int]) -> str:
    """Whether the files were read, or why not."""
    with alarm(SECONDS), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            return "read" if read() else "nothing is left"
        except InputError as error:
            line = str(error)
            assert line.isprintable() and len(line) < LONGEST_LINE, line
            return "refused"
        finally:
            assert all(str(each.message).isprintable() for each in warned), [each.message for each in warned]


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line_and_no_record_is_lost(name, tmp_path, monkeypatch):
    if name in ("lhotse", "LibriSpeech"):
        pytest.importorskip("lhotse")
    monkeypatch.chdir(tmp_path)
    reader = READERS[name]
    sound = reader.write()
    place_files(sound)
    assert outcome(reader.read) == "read", "the sound files are"
    outcomes: Counter[str] = Counter()

    @settings(max_examples=reader.inputs, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(st.sampled_from([*sound]), st.lists(DAMAGES, min_size=1, max_size=3))
    def damage_file(file: str, damages: list[Damage]) -> None:
        content = sound[file]
        for each in damages:
            content = KINDS[each.kind](content, each) if content else content
        place_files(sound | {file: content})
        outcomes[outcome(reader.read)] += 1

    damage_file()
    assert outcomes["refused"] + outcomes["nothing is left"] > reader.inputs / 20, outcomes
