"""Manifests of lhotse, and corpora that its recipes read.

lhotse says what its objects mean; files are opened here. It would run recordings of type `command` and paths that
begin with `pipe:`, and opens NIST SPHERE through a shell, so it is given none of them.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loratory.data.files import read_lines
from loratory.data.json_lines import parse_object
from loratory.data.ledger import Ledger
from loratory.domains.speech.utterances import Utterance, Word, duplicate_error
from loratory.errors import InputError

RECIPES: dict[str, dict[str, Any]] = {"librispeech": {}, "cslu_kids": {"normalize_text": False}}  # {recipe: options}
NUMBERS = ("start", "duration", "sampling_rate", "num_samples")  # of recordings, supervisions, cuts and words
ROUNDING = 0.01  # seconds by which times in manifests may differ from those that they stand for
LONGEST_ERROR = 120  # letters of what another library says
Placed = tuple[str, Any]  # where it stands, and an object of lhotse


def import_lhotse(where: Path | str) -> Any:
    """Raises:
    InputError: the library is not installed.
    """
    try:
        import lhotse
        import lhotse.recipes
        import lhotse.serialization
    except ImportError as error:
        fix = "pip install 'loratory[speech]'"
        raise InputError(where, "reading this needs lhotse", error, fix=fix, reason="lhotse") from None
    return lhotse


def manifest_utterances(paths: Iterable[str], transcript: str, ledger: Ledger) -> Iterator[Utterance]:
    """Utterances of manifests of recordings, supervisions and cuts, which may refer to each other.

    Args:
        transcript: see `Files`.

    Raises:
        InputError: as `read_lines`; with `on_error: fail` also the first object that is none of these, or whose sound
            is not the whole of one file.
    """
    recordings: dict[str, Placed] = {}
    segments: list[Placed] = []
    found: list[Utterance] = []
    for where, line in manifest_lines(paths):
        try:
            item = parse_item(where, line)
            kind = type(item).__name__
            if kind == "Recording" and recordings.setdefault(item.id, (where, item))[0] != where:
                raise duplicate_error(where, item.id)
            if kind == "SupervisionSegment":
                segments.append((where, item))
            elif kind in ("MonoCut", "MultiCut"):
                found += cut_utterances(where, item, transcript)
            elif kind != "Recording":
                what, expected = "not an utterance of one recording", "a recording, a supervision, or a cut of one"
                raise InputError(where, what, kind, expected, reason="manifest_kind")
        except InputError as error:
            ledger.count_record()
            ledger.note_error(error)
    for utterance in found:
        ledger.count_record()
        yield utterance
    yield from joined_utterances(recordings, segments, transcript, ledger)


def manifest_lines(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        import_lhotse(path)
        yield from ((f"{path}:{number}", line) for number, line in read_lines(path) if line.strip())


def parse_item(where: str, line: str) -> Any:
    """An object of lhotse.

    Raises:
        InputError: the line is none.
    """
    content = parse_object(where, line)
    check_numbers(where, content)
    try:
        return import_lhotse(where).serialization.deserialize_item(content)
    except InputError:
        raise
    except Exception as error:  # whatever its classes raise for fields that are missing or of another type
        what = f"not an object of a lhotse manifest: {error_text(error)}"
        raise InputError(where, what, expected="what lhotse writes", reason="manifest_kind") from None


def check_numbers(where: str, content: Any) -> None:
    """lhotse takes whatever stands for a time, and stumbles over it later.

    Raises:
        InputError: it is no finite number.
    """
    if isinstance(content, list):
        for item in content:
            check_numbers(where, item)
    elif isinstance(content, dict):
        for key, value in content.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if key in NUMBERS and not is_number:
                raise InputError(where, f"`{key}` is no number", value, "a finite number", reason="manifest_kind")
            if key != "custom":
                check_numbers(where, value)


def error_text(error: Exception) -> str:
    return f"{type(error).__name__} {error}"[:LONGEST_ERROR].strip()


def joined_utterances(
    recordings: Mapping[str, Placed], segments: Iterable[Placed], transcript: str, ledger: Ledger
) -> Iterator[Utterance]:
    """The supervisions with their recordings; a recording that none names is not transcribed."""
    unheard = dict(recordings)
    for where, segment in segments:
        ledger.count_record()
        try:
            if segment.recording_id not in recordings:
                what, expected = "no recording of this supervision", "its recording in a manifest"
                raise InputError(where, what, segment.recording_id, expected, reason="no_audio")
            unheard.pop(segment.recording_id, None)
            place, recording = recordings[segment.recording_id]
            yield segment_utterance(where, segment, place, recording, transcript)
        except InputError as error:
            ledger.note_error(error, segment.id)
    for id, (place, recording) in unheard.items():
        ledger.count_record()
        try:
            yield Utterance(id, place, audio_path(place, recording), None, "", seconds=recording.duration)
        except InputError as error:
            ledger.note_error(error, id)


def cut_utterances(where: str, cut: Any, transcript: str) -> list[Utterance]:
    """The supervisions of a cut; without any, what is cut is not transcribed.

    Raises:
        InputError: the cut has no sound of its own, or a supervision reaches beyond it.
    """
    if cut.recording is None:
        what = "a cut without a recording"
        raise InputError(where, what, cut.id, "sound, not features alone", reason="no_audio")
    for segment in cut.supervisions:
        if segment.start < -ROUNDING or segment.end > cut.duration + ROUNDING:
            what, given = "a supervision reaches beyond its cut", f"{segment.start:g} to {segment.end:g} s"
            raise InputError(where, what, given, f"within {cut.duration:g} s", reason="segment_times")
    found = [segment_utterance(where, s, where, cut.recording, transcript, cut.start) for s in cut.supervisions]
    if found:
        return found
    times, seconds = part_of_recording(cut.start, cut.end, cut.recording), cut.recording.duration
    return [Utterance(cut.id, where, audio_path(where, cut.recording), None, "", times, seconds)]


def segment_utterance(
    where: str, segment: Any, place: str, recording: Any, transcript: str, offset: float = 0.0
) -> Utterance:
    """A supervision's utterance.

    Args:
        place: where the recording stands. offset: of the supervision's times, seconds in the recording.

    Raises:
        InputError: its sound is not the whole of one file.
    """
    own = segment.custom or {}
    if {*as_list(segment.channel)} != {*recording.channel_ids}:
        what, fix = "an utterance on some of a recording's channels", "write each channel to a file of its own"
        raise InputError(where, what, segment.channel, f"all of {recording.channel_ids}", fix, "channels")
    text = segment.text if transcript == "text" else own.get(transcript)
    words = (segment.alignment or {}).get("word", ())
    return Utterance(
        id=segment.id,
        where=where,
        audio=audio_path(place, recording),
        text=None if text is None else str(text),
        speaker=str(segment.speaker or ""),
        times=part_of_recording(offset + segment.start, offset + segment.end, recording),
        seconds=recording.duration,
        age=str(next((own[key] for key in ("age", "speaker_age") if own.get(key) is not None), "")),
        gender=str(segment.gender or ""),
        words=tuple(Word(word.symbol, offset + word.start, offset + word.end) for word in words),
        places={"audio": place},
    )


def part_of_recording(start: float, end: float, recording: Any) -> tuple[float, float]:
    """Start and end, seconds; of what is as good as all of a recording, the whole."""
    whole = start <= ROUNDING and end >= recording.duration - ROUNDING
    return (0.0, -1.0) if whole and end <= recording.duration + ROUNDING else (start, end)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def audio_path(where: str, recording: Any) -> str:
    """The one file of a recording, as written.

    Raises:
        InputError: there is more to it than a file, or something else.
    """
    sources = recording.sources
    kind = sources[0].type if len(sources) == 1 else f"{len(sources)} sources"
    path = str(sources[0].source) if kind == "file" else ""
    if kind == "command" or path.startswith("pipe:"):
        fix = "run it beforehand and list the file that it writes"
        raise InputError(where, "shell commands are not run", sources[0].source, "a path", fix, "shell_pipe")
    if kind != "file":
        raise InputError(
            where, "a recording that is not a file", kind, "one source of type file", reason="audio_source"
        )
    if recording.transforms:
        what, fix = "a recording that is changed when it is read", "write what it becomes to a file"
        raise InputError(where, what, recording.id, "a file as it is", fix, "audio_source")
    return path


def recipe_utterances(name: str, folder: str, ledger: Ledger) -> Iterator[Utterance]:
    """The utterances of a corpus in the layout of its publication, as a recipe of lhotse reads it.

    Raises:
        InputError: the recipe cannot read it; with `on_error: fail` also the first thing that it would leave out.
    """
    lhotse, options = import_lhotse(folder), dict(RECIPES[name])
    if name == "librispeech":  # parts of whatever names
        options["dataset_parts"] = sorted({path.relative_to(folder).parts[0] for path in transcripts(folder)})
    complaints: list[str] = []
    try:
        with collect_warnings(complaints):
            made = getattr(lhotse.recipes, f"prepare_{name}")(folder, **options)
    except Exception as error:  # whatever the recipe raises for files that are not as it expects
        what = f"not read by lhotse's recipe {name}: {error_text(error)}"
        raise InputError(folder, what, expected="the corpus as it is published", reason="corpus") from None
    for complaint in complaints:
        ledger.count_record()
        what = f"lhotse's recipe leaves something out: {complaint.replace(f'{folder}/', '')}"
        ledger.note_error(InputError(folder, what, fix="complete or correct it", reason="corpus"))
    parts = [made] if "recordings" in made else list(made.values())
    recordings = {r.id: (f"{folder}:{r.id}", r) for part in parts for r in part["recordings"]}
    segments = [(f"{folder}:{s.id}", s) for part in parts for s in part["supervisions"]]
    yield from joined_utterances(recordings, segments, "text", ledger)


def transcripts(folder: str) -> Iterator[Path]:
    return Path(folder).rglob("*.trans.txt")


@contextmanager
def collect_warnings(found: list[str]) -> Iterator[None]:
    """Inside, what the library warns of is not printed but kept: it warns of records that it leaves out."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
