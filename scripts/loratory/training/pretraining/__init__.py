"""One module for each base family that can be trained here from nothing; a family without one needs `path` or `hub`.

Each is named as its family and is a `PretrainingModule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from loratory.domains.contract import TaskOptions
    from loratory.training.job import Job


class PretrainingModule(Protocol):
    """How a base of a family is trained from nothing."""

    def read_corpus(self, domain: str, records: list[dict], task: TaskOptions) -> list[Any]:
        """What it learns from records of a domain."""
        ...

    def pretrain(
        self, corpora: Mapping[str, list[Any]], entry: Any, audio_encoder: Path | str | None, job: Job
    ) -> tuple[Any, list[dict]]:
        """A trained base, or its model and tokenizer, and the learning curve.

        Args:
            corpora: {domain: what `read_corpus` gave}. entry: `config.BaseEntry`.
            audio_encoder: folder of the Whisper base whose encoder a causal base is to hear with, or None.
        """
        ...
