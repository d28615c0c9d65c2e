"""What a folder of a published model must be before anything is built on it.

A folder is read as data: no pickle is opened, no code of it runs, no link is followed out of it. Its own weights are
read one tensor at a time first, and what is left of them is opened once as every later job will (`check_opening`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os.path import realpath
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from loratory import registry
from loratory.bases.audio import AudioPrefix
from loratory.bases.core import MANIFEST, Base, family_class, load_with_report, open_tokenizer, read_object
from loratory.bases.precision import DTYPES
from loratory.errors import InputError, one_error

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("*.model",))
TEXTS = ("the user likes it", "MKTAYIAKQR", "M K T A Y I A K Q R", "acg tta gca", "ACG TTA GCA")
UNKNOWN = 0.5  # share of unknown tokens above which a text is as good as not read
# keys of config.json, at any depth, that choose how the library computes, and what it then computes by itself
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
OWN_KERNELS = (None, "eager", "sdpa")
QUANTISED = ("quantization_config", "compression_config")
LAYERS = ("layer", "layers", "blocks")  # how keys end that say how often the model repeats a part
UNREADABLE = (SafetensorError, NotImplementedError)
MOST_LABELS = 100_000  # each gets a name of its own when a config is opened
CONVERT = "load it once where you trust it and `save_pretrained(folder, safe_serialization=True)`"


def check_model_folder(folder: Path | str, family: str) -> None:
    """Whether the folder holds a whole model of this family with its tokenizer.

    Raises:
        InputError: the first thing that it lacks or has too much of.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "no such folder", expected="a Hugging Face model folder", reason="missing")
    check_architecture(folder, family)
    paths = weight_paths(folder)
    check_repeats(folder / "config.json", sum(map(count_tensors, paths)))
    model = check_weight_names(folder, family_class(family))
    if needed := family_class(family).needed_token:
        check_tokenizer(folder, needed, cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings)
    if (folder / "audio").is_dir():
        paths += check_audio(folder / "audio")
    for path in paths:
        check_finite(path)


def check_links(folder: Path | str) -> None:
    """Raises:
    InputError: a link leads out of the folder: it would bring in what nobody meant to publish.
    """
    folder = Path(realpath(folder))  # `resolve` raises for links in a circle
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not Path(realpath(path)).is_relative_to(folder):
            fix = "copy the folder with its contents (`cp -rL`)"
            raise InputError(path, "a link leads out of the folder", str(path.readlink()), "files", fix, "link")


def check_architecture(folder: Path, family: str) -> None:
    """Raises:
    InputError: `config.json` describes a model of another family, or one that this program cannot hold.
    """
    path = folder / "config.json"
    config = read_object(path)
    check_doors(path, config)
    kind, given = config.get("model_type"), config.get("architectures") or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InputError(path, "`architectures` is no list of names", given, '["LlamaForCausalLM"]')
    family_class(family).check_config(path, config)
    names = {name: family_class(name).architectures(str(kind)) for name in registry.registered_names("family")}
    if not names[family] or (given and not names[family] & {*given}):
        expected = f"{' or '.join(sorted(names[family])) or 'a model'} of family {family}"
        fits = [other for other, classes in names.items() if classes & {*given}]
        fix = " or ".join(f"`family: {name}`" for name in fits) or None
        what = "a model of another architecture"
        if not fits and "auto_map" in config:
            what, expected = "a model with code of its own, which is never run", "a class of transformers"
        raise InputError(path, what, ", ".join(given) or str(kind), expected, fix, "family")


def check_doors(path: Path, config: dict[str, Any]) -> None:
    """Raises:
    InputError: by a key or a file, the library would compute by other code or other weights than those checked here.
    """
    for key, value in nested_items(config):
        if key in QUANTISED and value is not None:
            expected = "weights in fp32, fp16 or bf16"
            raise InputError(path, "the weights are quantised", expected=expected, reason="family")
        if key in KERNELS and value not in OWN_KERNELS and (key.startswith("_") or "/" in str(value)):
            what, expected = f"`{key}` asks for code from elsewhere", "eager or sdpa"
            raise InputError(path, what, value, expected, "take the key out", "code")
        if key == "transformers_weights" and value is not None:
            what, expected = f"`{key}` names other weights", f"{WEIGHTS}, or {INDEX} with its shards"
            raise InputError(path, what, value, expected, "take the key out", "link")
    adapter = path.with_name("adapter_config.json")
    if adapter.exists():
        what, fix = "an adapter lies in the folder of the base", "merge it into the weights, or move it out"
        raise InputError(adapter, what, expected="a base alone", fix=fix, reason="code")
    tokenizer = path.with_name("tokenizer_config.json")
    files = read_object(tokenizer).get("fast_tokenizer_files") if tokenizer.is_file() else None
    for name in files if isinstance(files, list) else []:
        if not isinstance(name, str) or Path(name).name != name:
            what = "`fast_tokenizer_files` leads out of the folder"
            raise InputError(tokenizer, what, name, "names of files beside it", "take the key out", "link")


def nested_items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of objects in a JSON value, at any depth."""
    stack = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            stack += inner.values()
        elif isinstance(inner, list):
            stack += inner


def check_repeats(path: Path, tensors: int) -> None:
    """Raises:
    InputError: `config.json` wants more layers than there are tensors: building them would take until memory ends.
    """
    for key, value in nested_items(read_object(path)):
        limit = tensors if key.endswith(LAYERS) else MOST_LABELS if key == "num_labels" else None
        if limit is not None and isinstance(value, int) and value > limit:
            raise InputError(path, f"`{key}` is more than the weights can fill", value, f"at most {limit}")


def weight_paths(folder: Path) -> list[Path]:
    """The files that the model's weights are in: one file if it is there, as the library chooses, or shards.

    Raises:
        InputError: there is none, there are pickles alone, or one is missing.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not index.is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            what = "the weights are pickled, and a pickle can run code"
            raise InputError(folder / pickles[0], what, None, "*.safetensors", CONVERT, "pickle")
        raise InputError(folder, "no weights", expected=f"{WEIGHTS}, or {INDEX} with its shards", reason="missing")
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(index, "no `weight_map`", expected="{tensor: file}")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            what = "a shard is not a safetensors file of the folder"
            raise InputError(index, what, name, "names of files beside it", reason="link")
        if not (folder / name).is_file():
            what = f"{name} is missing, one of {len(names)} shards"
            raise InputError(index, what, expected="all shards", fix="fetch the folder again", reason="missing")
    return [folder / name for name in names]


def count_tensors(path: Path) -> int:
    """How many tensors a file holds.

    Raises:
        InputError: the file is not safetensors, or shorter than its header says.
    """
    what, expected, fix = "damaged or cut short", "a whole safetensors file", "fetch it again"
    with one_error(path, what, expected, fix, "weights", (SafetensorError, OSError, ValueError)):
        with open(path, "rb") as stream:
            if stream.read(24) == b"version https://git-lfs.":
                what, fix = "a Git LFS pointer in place of the file", "`git lfs pull`"
                raise InputError(path, what, fix=fix, reason="missing")
        with safe_open(path, framework="pt") as file:
            return len(file.keys())


def check_weight_names(folder: Path, family: type[Base]) -> PreTrainedModel:
    """The model without its numbers, to which the weights' names and shapes fit.

    Raises:
        InputError: weights are missing, too many, or of other shapes than `config.json` says.
    """
    # on the device "meta" no numbers are read; other shapes are reported below
    options = {**family.model_options, "device_map": {"": "meta"}, "ignore_mismatched_sizes": True}
    expected = "one that this version of transformers knows"
    with one_error(folder, "the model does not open", expected, reason="family"), quiet_logging():
        model, report = load_with_report(family.model_class, folder, **options)
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, stored, shape = wrong[0]
        what = f"{len(wrong)} weights of wrong shape, such as {name}"
        raise InputError(folder, what, str(tuple(stored)), f"{tuple(shape)} as config.json says", reason="weights")
    missing = sorted(filter(family.requires_weight, report["missing_keys"]))
    unexpected = unexpected_names(report["unexpected_keys"], family, model)
    for what, names, expected in (
        ("missing", missing, "every weight of the model in config.json"),
        ("unexpected", unexpected, "no others than config.json's"),
    ):
        if names:
            what = f"{len(names)} weights are {what}, such as {names[0]}"
            raise InputError(folder, what, type(model).__name__, expected, "give a folder as published", "weights")
    return model


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Silences the library's own report of what it loads: `InputError` says it in one line."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def unexpected_names(names: Iterable[str], family: type[Base], model: PreTrainedModel) -> list[str]:
    """Those that must not be there; constants may, as older versions stored them too."""
    constants = [name for name, _ in model.named_buffers()]
    names = [name for name in names if not any(f".{constant}".endswith(f".{name}") for constant in constants)]
    return sorted(name for name in names if family.refuses_weight(name, model))


def check_tokenizer(folder: Path, needed: str, embeddings: int) -> None:
    """Raises:
    InputError: the tokenizer is missing or incomplete, knows no text, or has more tokens than the model.
    """
    if not any(all(any(folder.glob(name)) for name in names) for names in TOKENIZERS):
        expected = "tokenizer.json, vocab.txt, vocab.json with merges.txt, or *.model"
        fix = "save the model's tokenizer into the folder, as its publisher did"
        raise InputError(folder, "no whole tokenizer", None, expected, fix, "tokenizer")
    with one_error(folder, "the tokenizer does not work", "a tokenizer of transformers", reason="tokenizer"):
        tokenizer = open_tokenizer(folder)
        largest = max(tokenizer.get_vocab().values(), default=-1)
        unknown = min(unknown_share(tokenizer, [text]) for text in TEXTS)
        needed_id = getattr(tokenizer, f"{needed}_id")
    if largest >= embeddings:
        what = "the tokenizer has more tokens than the model has embeddings"
        fix = "give the model's own tokenizer"
        raise InputError(folder, what, largest + 1, f"at most {embeddings}", fix, "tokenizer")
    if not isinstance(needed_id, int):
        fix = "name it in tokenizer_config.json"
        raise InputError(folder, f"the tokenizer has no `{needed}`", None, "one", fix, "tokenizer")
    if unknown > UNKNOWN:
        what = "the tokenizer knows neither words nor residues nor codons"
        raise InputError(folder, what, f"{largest + 1} tokens", "the model's own tokenizer", reason="tokenizer")


def unknown_share(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Share of the tokens of these texts that stand for what the tokenizer does not know; 1 if there is no token."""
    ids = [id for text in texts for id in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return sum(id == tokenizer.unk_token_id for id in ids) / len(ids) if ids else 1.0


def check_readable(base: Base, domain: str, texts: list[str]) -> None:
    """Raises:
    InputError: most of a domain's text is unknown to the base's tokenizer, so nothing can be learnt of it.
    """
    share = unknown_share(base.tokenizer, texts)
    if texts and share > UNKNOWN:
        what, expected = f"the tokenizer does not know what {domain} is written in", f"at most {UNKNOWN:.0%}"
        raise InputError(base.folder, what, f"{share:.0%} unknown tokens", expected, "take another base", "tokenizer")


def check_audio(folder: Path) -> list[Path]:
    """The files of an audio prefix that comes with the base.

    Raises:
        InputError: it does not open.
    """
    paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        count_tensors(path)
    check_doors(folder / "config.json", read_object(folder / "config.json"))
    expected = "what a base with `audio:` was saved with"
    with one_error(folder, "the audio prefix does not open", expected, reason="weights"):
        AudioPrefix.load(folder)
    return paths


def check_opening(folder: Path, source: Path) -> None:
    """Opens a prepared folder as every later job will, and reads one example.

    Raises:
        InputError: it does not open, or what it says is not a number; `source` is named as the folder.
    """
    manifest = read_object(folder / MANIFEST)
    try:
        what, expected = "the base does not read an example", "a base that does"
        with one_error(folder, what, expected, reason="weights"), quiet_logging():
            family_class(manifest["family"]).try_folder(folder, manifest, DTYPES[manifest["precision"]])
    except InputError as error:
        raise InputError(error.where.replace(str(folder), str(source)), error.detail, reason=error.reason) from error


def check_finite(path: Path) -> None:
    """Raises:
    InputError: a weight is NaN or infinite, or of a type that torch cannot read.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            what, expected = "numbers of a type that cannot be read", "fp32, fp16 or bf16"
            with one_error(f"{path}:{name}", what, expected, reason="weights", of=UNREADABLE):
                finite = is_finite(file.get_tensor(name))
            if not finite:
                raise InputError(f"{path}:{name}", "a weight is NaN or infinite", None, "numbers", reason="weights")


def is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor if tensor.itemsize > 1 else tensor.float()  # of 8 bits torch finds no extremes
    return bool(torch.stack(values.aminmax()).isfinite().all())
