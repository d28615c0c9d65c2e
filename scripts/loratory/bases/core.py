"""What every base family offers, and opening a prepared base folder."""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from transformers import AutoTokenizer

from loratory.data import files
from loratory.data.audio import HOP, RATE
from loratory.domains.contract import Example
from loratory.errors import InputError

MODELS = {"causal": "Causal", "encoder": "Encoder", "whisper": "Whisper"}
IGNORED = -100  # the label that every loss of this field leaves out
MANIFEST = "base.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by the config's `precision`


@dataclass(frozen=True)
class Encoded:
    """An example as numbers.

    Attributes:
        ids: token ids read by the (decoder of the) model; labels: the same length, IGNORED where nothing is scored.
        audio: path of the audio file, or ""; audio_tokens: how many positions of `ids` it fills.
        label: index of the target among the choices, or -1.
        alphabet: see `Example`.
        length: what the example costs a batch, in positions.
    """

    ids: list[int]
    labels: list[int]
    length: int
    audio: str = ""
    audio_tokens: int = 0
    label: int = -1
    alphabet: tuple[str, ...] = ()


class Base(ABC):
    """A loaded base. `model` is the Hugging Face model; adapters and mixtures are handed in as `model` arguments.

    Attributes:
        fingerprint: sha256 over the weight files; adapters remember it.
        heads: names of modules that are trained along with every adapter (a classifier that pretraining lacks).
        audio: the audio prefix of a causal base that hears, else None.
    """

    family: str
    heads: tuple[str, ...] = ()
    audio = None

    def __init__(self, folder, manifest: dict, model, tokenizer):
        self.folder, self.manifest, self.model, self.tokenizer = Path(folder), manifest, model, tokenizer
        self.fingerprint = manifest["weights_sha256"]

    @property
    def device(self):
        return self.model.device

    @abstractmethod
    def encode(self, example: Example) -> Encoded:
        """Raises:
        InputError: the example does not fit into the model's context.
        """

    @abstractmethod
    def collate(self, items: list[Encoded]) -> dict:
        """A batch of tensors on the model's device, padded on the right."""

    @abstractmethod
    def loss(self, model, batch: dict) -> tuple[torch.Tensor, int]:
        """Summed negative log-likelihood in nats, and over how many targets."""

    @staticmethod
    def routing_inputs(model, batch: dict) -> dict:
        """What a model wants to know of a batch beside its inputs: nothing, unless it is a mixture."""
        return {name: batch[name] for name in getattr(model, "wants", ()) if name in batch}


def pad_rows(rows: list[list[int]], value: int, device, left: bool = False) -> torch.Tensor:
    """`[len(rows), longest]`, padded with `value`."""
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([f + r if left else r + f for r, f in zip(rows, fill)], device=device)


def too_long_error(folder, example_id: str, length: int, limit: int) -> InputError:
    return InputError(
        f"{folder}:{example_id}",
        "the example does not fit into the base's context",
        f"{length} tokens",
        f"at most {limit}",
        "shorten the records (`dataset:` or `task:` of the domain) or take a base with a longer context",
        "too_long",
    )


def check_clip(where: str, samples: int, frames: int) -> None:
    """Raises:
    InputError: a clip of so many samples at 16 kHz is longer than a window of so many feature frames.
    """
    if samples > frames * HOP:
        what, fix = "the clip is longer than the base's audio window", "lower `dataset.max_seconds`"
        given, limit = f"{samples / RATE:.2f} s", f"at most {frames * HOP / RATE:g} s"
        raise InputError(where, what, given, limit, fix, "too_long")


def load_with_report(kind, folder, **options) -> tuple[torch.nn.Module, dict]:
    """A Hugging Face model and the library's report of names and shapes; only safetensors, no code of the folder."""
    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    return kind.from_pretrained(folder, output_loading_info=True, **safe, **options)


def open_model(kind, folder, new: tuple[str, ...] = (), **options):
    """Loads a Hugging Face model of class `kind` from safetensors.

    Args:
        new: modules that the weights may lack (a head that is to be trained).

    Raises:
        InputError: weights are missing: the library would fill them with random numbers without a word.
    """
    model, report = load_with_report(kind, folder, **options)
    missing = sorted(key for key in report["missing_keys"] if not any(f".{n}." in f".{key}" for n in new))
    if missing:
        what = f"{len(missing)} weights are missing, such as {missing[0]}"
        raise InputError(folder, what, type(model).__name__, "the whole model", "give a complete folder")
    return model


def open_tokenizer(folder):
    """A folder's tokenizer; code that comes with it is never run."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def weights_digest(folder) -> str:
    """One sha256 over all safetensors files of a folder, by sorted relative path.

    Raises:
        InputError: no safetensors file is there.
    """
    paths = sorted(Path(folder).rglob("*.safetensors"))
    if not paths:
        raise InputError(folder, "no *.safetensors file", expected="weights as safetensors (pickles are refused)")
    lines = [f"{files.file_sha256(path)}  {path.relative_to(folder)}" for path in paths]
    return sha256("\n".join(lines).encode()).hexdigest()


def load_base(folder, device="cpu", dtype: torch.dtype | None = None) -> Base:
    """Opens a folder made by `prepare_base`. Parameters are frozen and the model is in eval mode.

    Args:
        dtype: of the model's weights; None means the `precision` that the base was prepared with. An audio prefix and
            the heads of an encoder are float32 anyway.

    Raises:
        InputError: the folder was not prepared, or its weights are not those it was prepared with.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(path, "not a prepared base", expected="a folder made by the rule `prepare_base`")
    manifest = files.read_json(path)
    if weights_digest(folder) != manifest["weights_sha256"]:
        raise InputError(folder, "weights differ from those the base was prepared with", fix="prepare the base again")
    family = family_class(manifest["family"])
    base = family.open(Path(folder), manifest, dtype or DTYPES[manifest.get("precision", "fp32")])
    for part in filter(None, (base.model, base.audio)):
        part.requires_grad_(False).eval().to(device)
    return base


def family_class(family: str) -> type[Base]:
    return getattr(importlib.import_module(f"loratory.bases.{family}"), MODELS[family])
