"""What a dataset knows of an utterance's sound. Imported while the config is read: nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """A recording or a part of it.

    Attributes:
        path: of the audio file. sha256: of its bytes when the dataset was built; "" where nobody noted it.
        seconds: how long the clip is; None where nobody measured it.
        start, end: seconds in the recording; `end` None: as far as it goes.
    """

    path: str
    sha256: str = ""
    seconds: float | None = None
    start: float = 0.0
    end: float | None = None
