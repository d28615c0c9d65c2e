"""Small answers of a few systems for each domain that shows records, with text that would be markup if it could."""

from math import cos, radians, sin

import numpy as np
import soundfile

from loratory import registry
from loratory.data.structures import BACKBONE
from loratory.domains.contract import prediction_row
from loratory.domains.views import Answers, FoldedSample
from loratory.evaluation.foldseek import chain_text
from loratory.evaluation.structure import KnownChain

HOSTILE = "<script>alert(1)</script>"
SYSTEMS = ("base", "lora@d", "control")


def make_answers(domain, folder, **task):
    """(answers, task) of a domain; files that they name are written into `folder`."""
    options = registry.load_module("domain", domain, "sources").Task(**task)
    return MAKERS[domain](folder), options


def answers_of(records, reply, **more):
    """`reply(system, record)` gives the fields of a row; the best system is `lora@d`."""
    rows = {
        system: {r["id"]: prediction_row(r, r.get("text", ""), **reply(system, r)) for r in records}
        for system in SYSTEMS
    }
    return Answers("tiny", records, rows, "control", "lora@d", **more)


def transcripts(folder):
    coding = "CC" + "ATG" + "GCA" * 20 + "TAA" + "ATGGCC"
    texts = {f"a{HOSTILE}": (coding, 0), "b": ("C" * 80, 1), "c": (coding[1:], 1)}
    records = [{"id": id, "group": id, "sequence": text, "label": label} for id, (text, label) in texts.items()]
    return answers_of(records, lambda system, record: {"p": 0.9 if record["id"] == "b" else 0.2})


def ratings(folder):
    records = [
        {
            **{"id": f"u{user}", "group": f"u{user}", "user": f"u{user}{HOSTILE}", "title": f"Heat {HOSTILE}"},
            **{"label": user % 2, "rating": 4.5, "timestamp": 1_000_000_000 + user, "profile": ""},
            **{"history_times": [978_307_200, 7], "history_titles": [f"Alien {HOSTILE}", "Up"]},
            **{"history_stars": [5.0, 0.5], "history_items": ["1", "2"]},
        }
        for user in range(4)
    ]
    return answers_of(records, lambda system, record: {"p": 0.1 if system == "base" else 0.8})


def completions(folder):
    records = [
        {"id": f"q{n}{HOSTILE}", "group": "g", "prompt": f"Say {n} {HOSTILE}", "answer": str(n), "choices": []}
        for n in range(3)
    ]
    return answers_of(records, lambda system, record: {"text": f"1 {HOSTILE}"})


def utterances(folder):
    path = folder / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(16_000) / 9).astype(np.float32), 16_000, subtype="PCM_16")
    said = {f"u1{HOSTILE}": f"the cat sat {HOSTILE}", "u2": "a dog ran", "u3": "stop"}
    written = {"the": f"the bat sat {HOSTILE} on", "a": "a ran", "stop": "stop"}
    records = [
        {
            **{"id": id, "group": "s", "text": text, "audio": str(path), "audio_sha256": "", "start": 0.0},
            **{"end": 0.5, "seconds": 0.5, "speaker": f"s {HOSTILE}", "age": 7},
        }
        for id, text in said.items()
    ]
    return answers_of(records, lambda system, record: {"text": written[record["text"].split()[0]]})


def helix(length):
    """(length, 4, 3) Å: backbone atoms on a helix, near enough to be drawn."""
    atoms = [(2.3, -28, -0.9), (2.3, 0, 0.0), (1.7, 26, 1.1), (2.0, 22, 2.3)]
    return np.array(
        [
            [
                (r * cos(radians(100 * n + turn)), r * sin(radians(100 * n + turn)), 1.5 * n + up)
                for r, turn, up in atoms
            ]
            for n in range(length)
        ]
    )


def proteins(folder):
    letters = "MKVLAAGIVG" * 3
    chain = KnownChain(letters, helix(len(letters)))
    assert chain.backbone.shape[1] == len(BACKBONE)
    text = chain_text(chain, np.linspace(30, 95, len(letters)))
    folded = FoldedSample(
        "lora@d", f"sample-1 {HOSTILE}", letters, 62.0, text, f"near {HOSTILE}", 0.9, chain_text(chain)
    )
    records = [{"id": f"p{n}", "group": f"p{n}", "sequence": letters[n:]} for n in range(3)]
    samples = {"base": ["MKV"], "lora@d": [f"{letters}>", HOSTILE]}
    return answers_of(records, lambda system, record: {"nll": 1.0}, samples=samples, folded=[folded])


MAKERS = {"lncrna": transcripts, "protein": proteins, "recsys": ratings, "speech": utterances, "text": completions}
