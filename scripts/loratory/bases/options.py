"""Options of bases that the config has and the folder's manifest keeps. Imported while the config is read: nothing
heavy."""

from typing import Literal

from pydantic import Field, model_validator

from loratory.domains.contract import Options


class WhisperOptions(Options):
    """How a Whisper base is asked; the first three as in openai-whisper's decoding."""

    language: str = Field("en", description="language spoken, as `en`; English-only checkpoints know no other")
    task: Literal["transcribe", "translate"] = Field("transcribe", description="write what is said, or it in English")
    suppress: bool = Field(False, description="no symbols that nobody speaks, no blank or end at the beginning")
    window: Literal["full", "clip"] = Field(
        "full", description="what the encoder reads: 30 s whatever the clip, or as much as the batch's longest clip"
    )
    silence: float = Field(0, ge=0, le=30, description="seconds of silence that a `clip` window has after the clip")

    @model_validator(mode="after")
    def check_silence(self):
        if self.silence and self.window == "full":
            raise ValueError("`silence` needs `window: clip`: a full window ends in silence anyway")
        return self
