"""Corpora in the layout of their publication: through lhotse where its recipe reads all of them, else here.

lhotse has no recipe for MyST. That for CMU Kids gives the prompt as what was said, and opens recordings by a shell.
"""

from collections.abc import Callable, Iterator
from os.path import normpath
from pathlib import Path

from loratory.data.files import read_lines
from loratory.data.ledger import Ledger
from loratory.domains.speech.manifests import RECIPES, recipe_utterances
from loratory.domains.speech.sources import folder_files
from loratory.domains.speech.utterances import Utterance
from loratory.errors import InputError

AUDIO = (".flac", ".wav", ".sph", ".mp3", ".ogg", ".aiff")
KIDS_HEAD = 2  # lines of speaker.tbl before the first speaker
KIDS_ID = 8  # letters: four of the speaker, three of the sentence, one of how well it was read


def corpus_utterances(name: str, folder: str, encoding: str, ledger: Ledger) -> Iterator[Utterance]:
    """All utterances, and all recordings that no transcript names.

    Raises:
        InputError: there is no such corpus.
    """
    named = set()
    for utterance in read_corpus(name, folder, encoding, ledger):
        named.add(normpath(utterance.audio))
        yield utterance
    recordings = [path for path in folder_files(folder) if path.lower().endswith(AUDIO)]
    if not recordings:
        raise InputError(folder, "no recordings are here", expected=f"{name} as it is published", reason="corpus")
    for path in recordings:
        if normpath(path) not in named:
            ledger.count_record()
            yield Utterance(Path(path).stem, f"{folder}:{Path(path).stem}", path, None, "")


def read_corpus(name: str, folder: str, encoding: str, ledger: Ledger) -> Iterator[Utterance]:
    if name in RECIPES:
        return recipe_utterances(name, folder, ledger)
    readers: dict[str, Callable[[Path, str], Iterator[Utterance]]] = {"cmu_kids": cmu_kids, "myst": myst}
    return counted(readers[name](Path(folder), encoding), ledger)


def counted(utterances: Iterator[Utterance], ledger: Ledger) -> Iterator[Utterance]:
    for utterance in utterances:
        ledger.count_record()
        yield utterance


def myst(folder: Path, encoding: str) -> Iterator[Utterance]:
    """`{part}/{student}/{session}/{utterance}.flac`, with the transcript beside it in `.trn` where there is one.

    Raises:
        InputError: a recording lies elsewhere, so that nobody knows who speaks.
    """
    for path in sorted(folder.rglob("*.flac")):
        student = path.parent.parent.name
        if len(path.relative_to(folder).parts) < 3:
            expected = "part/student/session/utterance.flac, in the folder named or below it"
            raise InputError(path, "not where MyST has its recordings", path.name, expected, reason="corpus")
        transcript = path.with_suffix(".trn")
        text = None
        if transcript.is_file() and transcript.stat().st_size:
            text = " ".join(line for _, line in read_lines(transcript, encoding)).strip()
        places = {"text": f"{transcript}:{path.stem}"}
        yield Utterance(path.stem, f"{path}:{path.stem}", str(path), text, student, places=places)


def cmu_kids(folder: Path, encoding: str) -> Iterator[Utterance]:
    """`tables/transcrp.tbl` has what was said, marks included; `tables/speaker.tbl` the ages.

    Raises:
        InputError: a table is missing, or a row is not as published.
    """
    home = folder if (folder / "tables").is_dir() else folder / "cmu_kids"
    ages = {}
    for number, line in read_lines(home / "tables" / "speaker.tbl", encoding):
        if number > KIDS_HEAD and line.strip():
            speaker, _, grade_age, *_ = [*line.split(), "", ""]
            if grade_age.count("/") != 1:
                where = f"{home / 'tables' / 'speaker.tbl'}:{number}"
                raise InputError(where, "not a speaker", line, "id, place and grade/age", reason="corpus")
            ages[speaker] = grade_age.rpartition("/")[2]
    for number, line in read_lines(home / "tables" / "transcrp.tbl", encoding):
        if not line.strip():
            continue
        id, text = [*line.split(maxsplit=1), ""][:2]
        where = f"{home / 'tables' / 'transcrp.tbl'}:{number}"
        if len(id) != KIDS_ID:
            expected = "an id of speaker, sentence and quality, and what was said"
            raise InputError(where, "not an utterance", line, expected, reason="corpus")
        speaker, path = id[:4], home / "kids" / id[:4] / "signal" / f"{id}.sph"
        age = ages.get(speaker, "").replace("NA", "")
        yield Utterance(id, where, str(path), text.strip(), speaker, age=age, gender=speaker[0])
