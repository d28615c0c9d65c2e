"""What every base family offers, and opening a prepared base folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch.nn import Module
from transformers import AutoTokenizer
from transformers.models.auto import modeling_auto as auto

from loratory import registry
from loratory.bases.decoding import Routed, Sampling
from loratory.bases.memory import require_room
from loratory.bases.precision import opening_options
from loratory.data import files
from loratory.data.audio import HOP, RATE
from loratory.data.clips import Clip
from loratory.domains.contract import Context, Example
from loratory.errors import InputError, one_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loratory.bases.audio import AudioPrefix
    from loratory.bases.options import BaseEntry, Decoding

Batch = dict[str, torch.Tensor]
InPlace = Callable[[Callable, int, int], Callable]
IGNORED = -100  # the label that every loss of this field leaves out
LARGEST_OBJECT = 1 << 26  # bytes: an index of the shards of 100,000 tensors has 10 MB
MANIFEST, CURVE = "base.json", "curve.json"
CONTACTS = "contact_head"  # of ESM, which reads attention maps


@dataclass(frozen=True)
class Encoded:
    """An example as numbers.

    Attributes:
        ids: token ids read by the (decoder of the) model; labels: the same length, IGNORED where nothing is scored.
        audio: as the example's; audio_tokens: how many positions of `ids` it fills.
        label: index of the target among the choices, or -1.
        alphabet, context: see `Example`.
        length: what the example costs a batch, in positions.
    """

    ids: list[int]
    labels: list[int]
    length: int
    audio: Clip | str = ""
    audio_tokens: int = 0
    label: int = -1
    alphabet: tuple[str, ...] = ()
    context: Context = ()


class Base(ABC):
    """A loaded base. Adapters and mixtures are handed in as `model` arguments; they are called like the base's own.

    A file of `families/` defines one class `Family(Base)`. What a family has no use for stays as it is here, and
    raises an `InputError` that names the family.

    Attributes:
        family: the family's name, which is that of its file.
        model_class: the class of transformers that opens its weights, with the keywords `model_options`.
        needed_token: the attribute of the tokenizer, such as "eos_token", that must not be None; None of a family
            that needs no tokenizer.
        folder: where it was opened; manifest: the content of its `base.json`.
        model: the Hugging Face model; tokenizer: its tokenizer.
        fingerprint: sha256 over the weight files; adapters remember it.
        heads: names of modules that are trained along with every adapter (a classifier that pretraining lacks).
        audio: the audio encoder and projector of a causal base that reads clips, else None.
    """

    family: ClassVar[str]
    model_class: ClassVar[Any]
    model_options: ClassVar[Mapping[str, Any]] = {}
    needed_token: ClassVar[str | None] = None
    heads: tuple[str, ...] = ()
    audio: AudioPrefix | None = None

    def __init__(
        self, folder: Path | str, manifest: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ):
        self.folder, self.manifest, self.model, self.tokenizer = Path(folder), manifest, model, tokenizer
        self.fingerprint: str = manifest["weights_sha256"]
        self.alphabets: dict[tuple[str, ...], tuple[int, ...]] = {}

    # A folder of the family, before it is opened.

    @staticmethod
    @abstractmethod
    def architectures(model_type: str) -> set[str]:
        """Names of the classes whose weights it can be made from, for a `model_type` of transformers; empty: none."""

    @classmethod  # noqa: B027 (a family that needs no more leaves it)
    def check_config(cls, path: Path, config: dict[str, Any]) -> None:
        """Raises:
        InputError: the content of `config.json` lacks what the family needs besides its architecture.
        """

    @classmethod
    def requires_weight(cls, name: str) -> bool:
        """Whether a weight of the model must be in the folder; False of what is made when the base is prepared."""
        return True

    @classmethod
    def refuses_weight(cls, name: str, model: PreTrainedModel) -> bool:
        """Whether a weight in the folder that the model has no place for is an error."""
        return True

    @classmethod  # noqa: B027
    def complete_folder(cls, folder: Path) -> None:
        """Adds to a copied or pretrained folder what published ones lack."""

    @classmethod
    def manifest_facts(cls, entry: BaseEntry) -> dict[str, Any]:
        """Facts of the config entry that go into `base.json` besides those of every base."""
        return {}

    @classmethod
    def open(cls, folder: Path, manifest: dict[str, Any], **options: Any) -> Self:
        """The base of a prepared folder, opened with these `options` of the library (see `opening_options`)."""
        model = open_model(cls.model_class, folder, **options, **cls.model_options)
        return cls(folder, manifest, model, open_tokenizer(folder))

    @classmethod
    def try_folder(cls, folder: Path, manifest: dict[str, Any], dtype: torch.dtype) -> None:
        """Opens a prepared folder and reads one example.

        Raises:
            InputError: its loss is not a number.
        """
        base = cls.open(folder, manifest, dtype=dtype)
        with torch.no_grad():
            loss = base.loss(base.model.eval(), base.trial_batch())[0]
        if not loss.isfinite():
            what = "the model's loss on a short text is not a number"
            raise InputError(folder, what, loss.item(), "a number of nats", "check config.json", "weights")

    # Examples and batches.

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    @abstractmethod
    def context(self) -> int:
        """Most token ids that an example may have."""

    def check_choices(self, choices: tuple[str, ...]) -> None:  # noqa: B027 (a family that asks for none leaves it)
        """Raises:
        InputError: the base cannot tell two of an example's choices apart.
        """

    @abstractmethod
    def encode(self, example: Example) -> Encoded:
        """Raises:
        InputError: the example does not fit into the model's context.
        """

    def replace_clip(self, item: Encoded, clip: Clip) -> Encoded:
        """The same example with other sound, which may be longer or shorter."""
        raise self.unsupported_error("replace_clip")

    def longest_clip(self, item: Encoded) -> float:
        """Seconds of sound that `replace_clip` has room for in an example."""
        raise self.unsupported_error("longest_clip")

    def encode_question(self, example: Example, decoding: Decoding) -> Encoded:
        """As `encode`, of an example that is asked and not learnt; `decoding` may allow what no model learns from."""
        return self.encode(example)

    def keeps_rows(self, decoding: Decoding) -> bool:
        """Whether each item is one row of every batch that it is put into, in the order of the items, so that each may
        be another adapter's."""
        return False

    def windows(self, item: Encoded) -> list[Encoded]:
        """What is read of an encoded question, one after another; all at once by most families."""
        return [item]

    @abstractmethod
    def collate(self, items: Sequence[Encoded]) -> Batch:
        """A batch of tensors on the model's device, padded on the right.

        `mask [batch, length]` is 1 where the model reads; `labels` are `[batch, length]`, IGNORED where nothing is
        scored, or `[batch]` of a classifier. The other names are the family's own.
        """

    def training_batch(self, items: Sequence[Encoded], draw: int) -> Batch:
        """As `collate`, to learn from; `draw` (of a seed and a step) decides where a family draws what is asked."""
        return self.collate(items)

    def fixed_batch(self, batch: Batch, budget: int) -> Batch | None:
        """A training batch padded to one of few shapes, for steps that are replayed; None where the family has none.

        `summed_nll` of it is that of the batch, and is computed without a look at its numbers: an accelerator is
        asked for nothing on the way.

        Args:
            budget: most positions of any batch of the training.
        """
        return None

    def trial_batch(self) -> Batch:
        """A short example of what the family reads, to see whether the base works at all."""
        choices = (" no", " yes")
        return self.collate([self.encode(Example("trial", "", "does it work", choices[1], choices=choices))])

    def collate_prompts(self, items: Sequence[Encoded], left: bool = False) -> Batch:
        """The prompts alone: to be continued (padded on the left) or answered by a choice."""
        raise self.unsupported_error("collate_prompts")

    @abstractmethod
    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's keyword arguments for a batch."""

    @staticmethod
    def routing_inputs(model: Module, batch: Batch) -> Batch:
        """What a mixture takes of a batch besides the model's inputs; nothing for any other model."""
        return {name: batch[name] for name in model.wants if name in batch} if isinstance(model, Routed) else {}

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, without special tokens.

        Raises:
            InputError: the tokenizer panics, as on a text on which one of its regular expressions takes too long.
        """
        expected, fix = "a tokenizer that reads every text", "take another base"
        with one_error(self.folder, "the tokenizer does not read a text", expected, fix, "tokenizer"):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_tokens(self, example: Example) -> list[int]:
        """The ids of an example's prompt, without what stands before every text."""
        raise self.unsupported_error("prompt_tokens")

    def target_tokens(self, example: Example) -> list[int]:
        """The ids of an example's target, without an end; letter by letter where it has an alphabet.

        Raises:
            InputError: a letter is not in the alphabet.
        """
        if not example.alphabet:
            return self.tokens(example.target)
        known = dict(zip(example.alphabet, self.letter_ids(example.alphabet)))
        for letter in example.target:
            if letter not in known:
                where, letters = f"{self.folder}:{example.id}", "".join(example.alphabet)
                raise InputError(where, "a letter outside the alphabet", letter, f"one of {letters}")
        return [known[letter] for letter in example.target]

    def letter_ids(self, alphabet: tuple[str, ...]) -> tuple[int, ...]:
        """The token of each letter.

        Raises:
            InputError: the tokenizer has no token of its own for a letter.
        """
        if alphabet not in self.alphabets:
            ids: list[int] = []
            for letter in alphabet:
                found = self.tokens(letter)
                if len(found) != 1 or found[0] in (*ids, self.tokenizer.unk_token_id):
                    what = "the tokenizer has no token of its own for a letter"
                    fix = "set `task.tokens: text` of the domain"
                    raise InputError(self.folder, what, letter, "one token a letter", fix)
                ids += found
            self.alphabets[alphabet] = tuple(ids)
        return self.alphabets[alphabet]

    def audio_tokens(self, example: Example) -> int:
        """How many positions of `ids` an example's clip fills."""
        raise self.unsupported_error("audio_tokens")

    # Losses and predictions.

    @abstractmethod
    def loss(self, model: Module, batch: Batch) -> tuple[torch.Tensor, int]:
        """Summed negative log-likelihood in nats `[]`, and over how many targets."""

    def summed_nll(self, model: Module, batch: Batch) -> torch.Tensor:
        """The sum of `loss` alone, of any batch and of a `fixed_batch`."""
        raise self.unsupported_error("summed_nll")

    def target_logits(self, model: Module, batch: Batch) -> torch.Tensor:
        """Logits at each target of `loss`, in its order: `[targets, tokens]`, or those of an alphabet's letters."""
        raise self.unsupported_error("target_logits")

    def row_losses(self, model: Module, batch: Batch) -> torch.Tensor:
        """What `loss` sums, of each row by itself `[rows]`."""
        raise self.unsupported_error("row_losses")

    def count_targets(self, batch: Batch) -> int:
        """Over how many targets `loss` sums: labels of a classifier, or of positions behind the first, which nothing
        foretells."""
        labels = batch["labels"]
        return int((labels[:, 1:] != IGNORED).sum()) if labels.dim() == 2 else len(labels)

    def nll(self, model: Module, items: Sequence[Encoded]) -> list[tuple[float, int]]:
        """Output "nll": summed nats and number of scored tokens of each item."""
        raise self.unsupported_error("nll")

    def scoring_positions(self, item: Encoded) -> int:
        """How many positions `nll` puts through the model for an item."""
        return item.length

    def choice(self, model: Module, items: Sequence[Encoded], choices: tuple[str, ...]) -> torch.Tensor:
        """Output "choice": log probability of each choice `[items, choices]`, renormalised over the choices."""
        raise self.unsupported_error("choice")

    def text_columns(
        self,
        model: Module,
        items: Sequence[Encoded],
        limit: int,
        sampling: Sampling | None = None,
        in_place: InPlace | None = None,
        decoding: Decoding | None = None,
    ) -> list[dict[str, Any]]:
        """Outputs "text" and "sample": columns of a prediction, `text` and what else a family says of what it writes.

        At most `limit` tokens for each item; greedy unless `sampling` is given.

        Args:
            in_place: (forward, rows, length) -> the forward to use, whose steps may stay in place; a family may leave
                it unused.
            decoding: of transcripts, for the families that know more than greedy ones.
        """
        raise self.unsupported_error("text")

    def text(self, model: Module, items: Sequence[Encoded], limit: int, *others: Any, **named: Any) -> list[str]:
        """The texts alone of `text_columns`, whose arguments it takes."""
        return [each["text"] for each in self.text_columns(model, items, limit, *others, **named)]

    def unsupported_error(self, member: str) -> InputError:
        """The error of what the family has no use for."""
        what = f"a base of family {self.family} has no `{member}`"
        return InputError(self.folder, what, expected="a family that declares it; see `bases/families/`")


def pad_rows(rows: Sequence[list[int]], value: int, device: torch.device | str, left: bool = False) -> torch.Tensor:
    """`[len(rows), longest]`, padded with `value`."""
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([f + r if left else r + f for r, f in zip(rows, fill)], device=device)


def too_long_error(folder: Path | str, example_id: str, length: int, limit: int) -> InputError:
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


def load_with_report(kind: Any, folder: Path | str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A Hugging Face model and the library's report of names and shapes; only safetensors, no code of the folder."""
    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    own = {"attn_implementation": None, "experts_implementation": None}  # the library's, whatever config.json says
    return kind.from_pretrained(folder, output_loading_info=True, **safe, **own, **options)


def open_model(kind: Any, folder: Path | str, new: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """Loads a Hugging Face model of class `kind` from safetensors.

    Args:
        new: modules that the weights may lack (a head that is to be trained).

    Raises:
        InputError: weights are missing: the library would fill them with random numbers and only log it.
    """
    model, report = load_with_report(kind, folder, **options)
    missing = sorted(key for key in report["missing_keys"] if not any(f".{n}." in f".{key}" for n in new))
    if missing:
        what = f"{len(missing)} weights are missing, such as {missing[0]}"
        raise InputError(folder, what, type(model).__name__, "the whole model", "give a complete folder")
    return model


def class_names(model_type: str, *mappings: Mapping[str, Any]) -> set[str]:
    """The classes that transformers' tables give for a `model_type`."""
    found = [mapping[model_type] for mapping in mappings if model_type in mapping]
    return {name for names in found for name in ([names] if isinstance(names, str) else names)}


def is_bidirectional(model_type: str) -> bool:
    """Whether models of this type predict masked tokens and classify sequences."""
    masked, sorts = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    return model_type in masked and model_type in sorts


def position_limit(model: PreTrainedModel) -> int:
    """Most token ids that an encoder has positions for: RoBERTa and ESM count them from behind that of padding."""
    limit = getattr(model.config, "max_position_embeddings", 1 << 30)  # practically without end
    padding = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return limit if padding is None else limit - padding - 1


def drop_contact_head(model: PreTrainedModel) -> None:
    """Takes away what ESM predicts contacts with: nothing here asks for them, and no adapter shall lie on it."""
    if hasattr(model.base_model, CONTACTS):
        setattr(model.base_model, CONTACTS, torch.nn.Identity())


def open_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """A folder's tokenizer; code that comes with it is never run."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        InputError: no such file, or not one JSON object.
    """
    if not path.is_file():
        raise InputError(path, "no such file", expected="a Hugging Face model folder", reason="missing")
    if path.stat().st_size > LARGEST_OBJECT:
        raise InputError(path, f"more than {LARGEST_OBJECT >> 20} MB of JSON", None, "settings, not data")
    with one_error(path, "not JSON", "a JSON object", of=(OSError, ValueError, RecursionError)):
        value = files.read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "not a JSON object", value, "a JSON object")
    return value


def weights_digest(folder: Path | str) -> str:
    """One sha256 over all safetensors files of a folder, by sorted relative path.

    Raises:
        InputError: no safetensors file is there.
    """
    paths = sorted(Path(folder).rglob("*.safetensors"))
    if not paths:
        raise InputError(folder, "no *.safetensors file", expected="weights as safetensors (pickles are refused)")
    return digest_of_files(folder, paths)


def settings_digest(folder: Path | str) -> str:
    """One sha256 over a prepared folder's other files (config, tokenizer, …), which say how its weights are used.

    Learning curves do not: they hold seconds, which are never the same twice. Hidden files are the workflow's.
    """
    found = (path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".safetensors")
    own = (path for path in found if path != Path(folder, MANIFEST) and path.name != CURVE)
    return digest_of_files(folder, sorted(path for path in own if not path.name.startswith(".")))


def digest_of_files(folder: Path | str, paths: Sequence[Path]) -> str:
    lines = [f"{files.file_sha256(path)}  {path.relative_to(folder)}" for path in paths]
    return sha256("\n".join(lines).encode()).hexdigest()


def load_base(folder: Path | str, device: torch.device | str = "cpu", precision: str | None = None) -> Base:
    """Opens a folder made by `prepare_base`. Parameters are frozen and the model is in eval mode.

    Args:
        precision: of the model's weights; None means the one that the base was prepared with. An audio prefix and
            the heads of an encoder are float32 anyway.

    Raises:
        InputError: the folder was not prepared, its files are not those it was prepared with, or as `opening_options`
            and `require_room`.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(path, "not a prepared base", expected="a folder made by the rule `prepare_base`")
    manifest = read_object(path)
    for what, digest in (("weights", weights_digest), ("settings", settings_digest)):
        if digest(folder) != manifest.get(f"{what}_sha256"):
            line = f"{what} differ from those the base was prepared with"
            raise InputError(folder, line, fix="prepare the base again")
    precision = precision or manifest.get("precision", "fp32")
    held = opening_options(Path(folder), precision, device)
    require_room(folder, precision, device)
    base = family_class(manifest["family"]).open(Path(folder), manifest, **held)
    for part in filter(None, (base.model, base.audio)):
        part.requires_grad_(False).eval().to(device)
    return base


def family_class(family: str) -> type[Base]:
    """The class that a family's file defines."""
    return registry.load_module("family", family).Family
