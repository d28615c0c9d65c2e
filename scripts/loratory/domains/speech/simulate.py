"""Spoken commands in the layout of a Kaldi corpus: adults to pretrain on, child-like speakers to adapt to.

Children differ as acoustics says they do (Lee, Potamianos and Narayanan 1999, doi:10.1121/1.426686): shorter vocal
tracts (formants up by 15-40 %), higher pitch, slower and less even tempo, pauses, and slips of the tongue.
Transcripts are verbatim: fillers, repeated words and broken-off words are in the audio and in the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import soundfile

from loratory.data.audio import RATE
from loratory.domains.speech.espeak import Synthesiser
from loratory.domains.speech.sources import Simulation

POPULATIONS = ("general", "domain")
LONGEST = 3.5  # seconds
TABLES, AUDIO = "tables", "audio"
ONSET = re.compile(r"[^aeiou]*[aeiou]+")
FILLERS = ("um", "uh")
SENTENCES = (
    "{verb} the {thing}",
    "{verb} the {colour} {thing}",
    "{verb} the {size} {thing}",
    "i see a {colour} {thing}",
    "{who} can {do}",
    "{who} {like} to {do}",
    "go to the {place}",
    "the {thing} is {size}",
    "{number} {colour} {things}",
    "{number} {size} {things}",
)
WORDS = {
    "verb": ["open", "close", "find", "take", "show", "wash", "hold", "drop"],
    "thing": ["ball", "book", "cat", "dog", "fish", "tree", "door", "cup", "hat", "bird", "car", "shoe"],
    "things": ["balls", "books", "cats", "dogs", "birds", "cars", "shoes", "cups"],
    "colour": ["red", "blue", "green", "black", "white", "yellow"],
    "size": ["big", "small", "old", "new", "wet", "cold"],
    "number": ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    "place": ["school", "park", "shop", "garden", "river", "house"],
    "who": ["you", "we", "they"],
    "like": ["like", "want"],
    "do": ["run", "jump", "swim", "sing", "play", "read"],
}
ADULT_VOICES = {"m": ("m1", "m2", "m3", "m5", "m7"), "f": ("f1", "f2", "f3", "f4")}
CHILD_VOICES = ("f1", "f2", "f3", "f4")  # before puberty the sexes sound alike
ACCENTS = ("en-us", "en-us", "en-gb-x-rp")


@dataclass(frozen=True)
class Speaker:
    """Traits of a voice; tempo in words a minute, `stretch` is the factor of pitch and formants."""

    id: str
    age: int
    gender: str
    voice: str
    stretch: float
    tempo: float
    unevenness: float
    pitch: int
    range: int
    noise: float  # dB below the speech
    slips: float  # share of sentences with a slip of the tongue


def simulate(simulation: Simulation, population: str, seed: int, out: Path | str) -> dict:
    """Writes `tables/` (wav.scp, text, utt2spk, spk2age, spk2gender) and `audio/` (16 kHz FLAC) below `out`.

    Returns:
        The fields of `Files`, relative to `out`.
    """
    stream = POPULATIONS.index(population)
    synthesiser = Synthesiser(seed)
    tables: dict[str, list[tuple]] = {name: [] for name in ("wav.scp", "text", "utt2spk", "spk2age", "spk2gender")}
    for number in range(simulation.speakers):
        rng = np.random.default_rng([seed, stream, number])
        speaker = (child_speaker if population == "domain" else adult_speaker)(number, rng, simulation)
        tables["spk2age"].append((speaker.id, speaker.age))
        tables["spk2gender"].append((speaker.id, speaker.gender))
        folder = Path(out, AUDIO, speaker.id)
        folder.mkdir(parents=True, exist_ok=True)
        for count in range(simulation.utterances_per_speaker):
            id = f"{speaker.id}-{count:04d}"
            text, samples = next(short_utterances(speaker, rng, synthesiser))
            soundfile.write(folder / f"{id}.flac", samples, RATE, subtype="PCM_16")
            tables["wav.scp"].append((id, f"{speaker.id}/{id}.flac"))
            tables["text"].append((id, text))
            tables["utt2spk"].append((id, speaker.id))
    Path(out, TABLES).mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        Path(out, TABLES, name).write_text("".join(f"{key}\t{value}\n" for key, value in rows))
    return {"folders": [TABLES], "audio_root": AUDIO}


def adult_speaker(number: int, rng: np.random.Generator, simulation: Simulation) -> Speaker:
    gender = "mf"[number % 2]
    return Speaker(
        id=f"adult{number:04d}",
        age=int(rng.integers(18, 70)),
        gender=gender,
        voice=f"{rng.choice(ACCENTS)}+{rng.choice(ADULT_VOICES[gender])}",
        stretch=rng.uniform(0.95, 1.05),
        tempo=rng.uniform(150, 200),
        unevenness=0.05,
        pitch=int(rng.integers(35, 66)),
        range=int(rng.integers(30, 71)),
        noise=rng.uniform(25, 40),
        slips=0.0,
    )


def child_speaker(number: int, rng: np.random.Generator, simulation: Simulation) -> Speaker:
    age = int(rng.integers(5, 14))
    youth = (13 - age) / 8  # 1 at five years, 0 at thirteen
    return Speaker(
        id=f"child{number:04d}",
        age=age,
        gender="mf"[number % 2],
        voice=f"{rng.choice(ACCENTS)}+{rng.choice(CHILD_VOICES)}",
        stretch=1.15 + 0.2 * youth + rng.uniform(0, 0.05),
        tempo=rng.uniform(125, 150) - 25 * youth,
        unevenness=0.1 + 0.1 * youth,
        pitch=int(rng.integers(30, 66)),
        range=int(rng.integers(50, 100)),
        noise=rng.uniform(15, 30),
        slips=simulation.disfluency,
    )


def short_utterances(
    speaker: Speaker, rng: np.random.Generator, synthesiser: Synthesiser
) -> Iterator[tuple[str, np.ndarray]]:
    """Endless (transcript, samples at 16 kHz), none longer than LONGEST."""
    while True:
        phrases = insert_slip(random_sentence(rng), rng) if rng.random() < speaker.slips else [random_sentence(rng)]
        samples = utterance_samples(phrases, speaker, rng, synthesiser)
        if len(samples) <= LONGEST * RATE:
            yield " ".join(phrases), samples


def random_sentence(rng: np.random.Generator) -> str:
    words = {role: rng.choice(choices) for role, choices in WORDS.items()}
    return rng.choice(SENTENCES).format_map(words)


def insert_slip(text: str, rng: np.random.Generator) -> list[str]:
    """Phrases with pauses between them: a filler, a word said twice, or a word broken off and begun again."""
    words = text.split()
    at = int(rng.integers(len(words)))
    onset = ONSET.match(words[at])
    extra = [rng.choice(FILLERS), words[at], onset[0] if onset else words[at]][rng.integers(3)]
    return [" ".join([*words[:at], extra]), " ".join(words[at:])]


def utterance_samples(
    phrases: list[str], speaker: Speaker, rng: np.random.Generator, synthesiser: Synthesiser
) -> np.ndarray:
    """The phrases with pauses between and silence around them, at a random level, with noise."""
    parts = [random_silence(rng, 0.05, 0.2)]
    for phrase in phrases:
        parts += [phrase_samples(phrase, speaker, rng, synthesiser), random_silence(rng, 0.1, 0.3)]
    samples = np.concatenate(parts)
    level = 10 ** (rng.uniform(-28, -20) / 20)
    samples *= level / np.sqrt(np.square(samples).mean())
    samples += rng.normal(0, level * 10 ** (-speaker.noise / 20), len(samples))
    return np.clip(samples, -1, 1)


def random_silence(rng: np.random.Generator, shortest: float, longest: float) -> np.ndarray:
    return np.zeros(int(rng.uniform(shortest, longest) * RATE), np.float32)


def phrase_samples(phrase: str, speaker: Speaker, rng: np.random.Generator, synthesiser: Synthesiser) -> np.ndarray:
    """Played faster by `stretch`, a voice rises in pitch and formants alike; espeak speaks slower in return."""
    tempo = speaker.tempo / speaker.stretch * rng.lognormal(0, speaker.unevenness)
    samples = synthesiser.synthesise_text(
        phrase,
        speaker.voice,
        rate=int(np.clip(tempo, 80, 300)),
        volume=100,
        pitch=int(np.clip(speaker.pitch + rng.normal(0, 5), 0, 99)),
        range=speaker.range,
        gap=int(rng.integers(0, 1 + round(20 * speaker.unevenness))),
    )
    return librosa.resample(samples, orig_sr=synthesiser.rate * speaker.stretch, target_sr=RATE, res_type="soxr_hq")
