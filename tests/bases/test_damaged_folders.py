"""Whatever is damaged in a base's folder, preparing it ends in one line or in a base that works."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import encoder_base, entry, llama, save, text_tokenizer, whisper_base

from loratory.bases.core import load_base
from loratory.bases.prepare import prepare_folder
from loratory.errors import InputError

ODD: list[Any] = [None, True, -1, 0, 3, 2**70, 1e400, float("nan"), "", "../x", "owner/kernel", [], {}, [[]], ["x"]]
SIZES = [2**62, 2**31, 99_999_999, 3, 0]  # what a header says that it is long


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """{family: folder}, small."""
    folder = tmp_path_factory.mktemp("sound")
    save(folder / "causal", "causal", llama(len(text_tokenizer())), text_tokenizer())
    whisper_base(folder / "whisper")
    encoder_base(folder / "encoder")
    return {family: folder / family for family in ("causal", "whisper", "encoder")}


def change_value(content: bytes, rng: random.Random) -> bytes:
    """JSON with another value, or without it, anywhere."""
    whole = json.loads(content)
    parent, key = rng.choice(list(places(whole)))
    if rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = rng.choice(ODD)
    return json.dumps(whole).encode()


def places(value: Any):
    """(object or list, key or index) of all that it holds; of long lists the first four."""
    keys = list(value) if isinstance(value, dict) else range(min(4, len(value))) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def change_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else of its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = change_value(content[8:end], rng)
    return len(header).to_bytes(8, "little") + header + content[end:]


def cut_bytes(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 8, 64])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def change_length(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(SIZES).to_bytes(8, "little") + content[8:]


def nest_brackets(content: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"[", b'{"a":']) * 100_000


DAMAGES: dict[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
    ".json": (change_value, change_value, change_value, cut_bytes, flip_bits, nest_brackets),
    ".safetensors": (change_header, change_header, cut_bytes, flip_bits, change_length),
}


@pytest.mark.parametrize("family", ["causal", "whisper", "encoder"])
def test_a_damaged_folder_is_refused_in_one_line_or_works(family, sound, tmp_path):
    outcomes = []
    for seed in range(20):
        rng = random.Random(seed)
        folder, out = tmp_path / f"{seed}", tmp_path / f"{seed} prepared"
        shutil.copytree(sound[family], folder)
        path = rng.choice([path for path in sorted(folder.iterdir()) if path.suffix in DAMAGES])
        path.write_bytes(rng.choice(DAMAGES[path.suffix])(path.read_bytes(), rng))
        try:
            prepare_folder(folder, "b", entry(family), out)
        except InputError as error:
            assert "\n" not in str(error) and str(folder) in str(error) and not out.exists()
            outcomes.append("refused")
        else:
            load_base(out)
            outcomes.append("works")
    assert {*outcomes} == {"refused", "works"}
