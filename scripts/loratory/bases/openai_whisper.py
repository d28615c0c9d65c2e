"""OpenAI's Whisper checkpoints (`.pt`: sizes and weights) as model folders, and such folders as checkpoints.

    python -m loratory.bases.openai_whisper FOLDER OUT.pt

Nothing that a checkpoint pickles is run. The numbers stay what they are, in the precision that they are stored in.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import TikTokenConverter

from loratory.bases.families.whisper import ENGLISH_ONLY
from loratory.bases.pickles import read_pickle
from loratory.data.files import atomic_write
from loratory.errors import InputError

END = "<|endoftext|>"
SIZES = {  # OpenAI's name: that of `WhisperConfig`; the decoder's width is the encoder's
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
SINGLE = {
    "encoder.positional_embedding": "encoder.embed_positions.weight",
    "decoder.positional_embedding": "decoder.embed_positions.weight",
    "decoder.token_embedding.weight": "decoder.embed_tokens.weight",
}
OUTER = {"encoder.conv1": "encoder.conv1", "encoder.conv2": "encoder.conv2"}
OUTER |= {"encoder.ln_post": "encoder.layer_norm", "decoder.ln": "decoder.layer_norm"}
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
BLOCK_NAMES = {"mlp.0": "fc1", "mlp.2": "fc2", "mlp_ln": "final_layer_norm"}


def weight_names(sizes: dict[str, int]) -> dict[str, str]:
    """{OpenAI's name: Hugging Face's} of every weight of a model of these sizes."""
    modules = dict(OUTER)
    for side, layers in (("encoder", sizes["n_audio_layer"]), ("decoder", sizes["n_text_layer"])):
        attentions = {"attn": "self_attn"} | ({"cross_attn": "encoder_attn"} if side == "decoder" else {})
        block = dict(BLOCK_NAMES)
        for theirs, ours in attentions.items():
            block[f"{theirs}_ln"] = f"{ours}_layer_norm"
            block |= {f"{theirs}.{part}": f"{ours}.{name}" for part, name in ATTENTION.items()}
        for i in range(layers):
            modules |= {f"{side}.blocks.{i}.{part}": f"{side}.layers.{i}.{name}" for part, name in block.items()}
    names = dict(SINGLE)
    for theirs, ours in modules.items():
        kinds = ("weight",) if theirs.endswith(".key") else ("weight", "bias")  # a bias of keys would change nothing
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in kinds}
    return {theirs: f"model.{ours}" for theirs, ours in names.items()}


def read_checkpoint(path: Path | str) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """Sizes and weights of a `.pt` file.

    Raises:
        InputError: no such file, no checkpoint of Whisper, or one that holds more than numbers (code is not run).
    """
    content = read_pickle(path, "a checkpoint of openai-whisper")
    found = content if isinstance(content, dict) else {}
    sizes, weights = found.get("dims"), found.get("model_state_dict")
    if not isinstance(sizes, dict) or not isinstance(weights, dict):
        raise InputError(path, "not a checkpoint of Whisper", None, "a dict of `dims` and `model_state_dict`")
    if sizes.keys() != SIZES.keys() or not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        raise InputError(path, "not the sizes of a Whisper model", str(sizes), ", ".join(SIZES))
    check_names(path, weights, weight_names(sizes))
    return sizes, weights


def check_names(where: Path | str, found: Mapping[str, Any], expected: Collection[str]) -> None:
    """Raises:
    InputError: weights are missing, or there are others.
    """
    for what, names in (("missing", {*expected} - found.keys()), ("unexpected", found.keys() - {*expected})):
        if names:
            some, fix = min(names), "give the checkpoint of one whole Whisper model"
            raise InputError(where, f"{len(names)} weights are {what}, such as {some}", None, "Whisper's alone", fix)


def check_shapes(where: Path | str, weights: Mapping[str, Any], config: WhisperConfig) -> None:
    """Raises:
    InputError: a weight is no tensor, or of another shape than in a model of this config.
    """
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    for name, expected in model.state_dict().items():
        if name in weights and getattr(weights[name], "shape", None) != expected.shape:
            given = getattr(weights[name], "shape", None)
            raise InputError(f"{where}:{name}", "wrong size", given and str(tuple(given)), str(tuple(expected.shape)))


def whisper_config(path: Path | str, sizes: dict[str, int]) -> WhisperConfig:
    """Raises:
    InputError: encoder and decoder differ in width, or the vocabulary is not one of OpenAI's.
    """
    if sizes["n_audio_state"] != sizes["n_text_state"]:
        given = f"{sizes['n_audio_state']} and {sizes['n_text_state']}"
        raise InputError(path, "encoder and decoder differ in width", given, "one width")
    check_vocabulary(path, sizes["n_vocab"])
    end = 50256 + (sizes["n_vocab"] > ENGLISH_ONLY)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    wide = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * sizes["n_text_state"])
    fields: dict[str, Any] = {name: sizes[theirs] for theirs, name in SIZES.items()} | wide | ids
    config = WhisperConfig(**fields, suppress_tokens=None, begin_suppress_tokens=None)
    config.architectures = ["WhisperForConditionalGeneration"]
    return config


def check_vocabulary(where: Path | str, size: int) -> None:
    if not ENGLISH_ONLY <= size <= ENGLISH_ONLY + 2:  # 0, 99 or 100 languages
        raise InputError(where, "not a vocabulary of OpenAI's", f"{size} tokens", "51864, 51865 or 51866 tokens")


class BytePairConverter(TikTokenConverter):
    """Byte pairs of an encoding that is in memory in place of a file."""

    @staticmethod
    def load_tiktoken_bpe(encoding: Any) -> dict[bytes, int]:
        return encoding._mergeable_ranks


def openai_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """openai-whisper's own tokenizer for a model of so many tokens, with the same ids."""
    from whisper.tokenizer import get_encoding

    multilingual = vocabulary > ENGLISH_ONLY
    name, languages = ("multilingual", vocabulary - ENGLISH_ONLY + 98) if multilingual else ("gpt2", 99)
    encoding = get_encoding(name, languages)
    special = sorted(encoding.special_tokens_set, key=encoding.encode_single_token)
    converter = BytePairConverter(encoding, encoding._pat_str, extra_special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        eos_token=END,
        bos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=448,
    )


def import_openai(path: Path | str, out: Path | str) -> None:
    """Writes the model folder of a `.pt` checkpoint: config, weights as safetensors, tokenizer.

    Raises:
        InputError: as `read_checkpoint` and `whisper_config`.
    """
    sizes, weights = read_checkpoint(path)
    config, names = whisper_config(path, sizes), weight_names(sizes)
    check_shapes(path, {names[name]: tensor for name, tensor in weights.items()}, config)
    with atomic_write(out) as aside:
        aside.mkdir(parents=True)
        config.save_pretrained(aside)
        openai_tokenizer(config.vocab_size).save_pretrained(aside)
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(aside)
        tensors = {names[name]: tensor.contiguous() for name, tensor in weights.items()}
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})


def export_openai(folder: Path | str, out: Path | str) -> None:
    """Writes a `.pt` that `whisper.load_model` opens, from a model folder with OpenAI's vocabulary.

    Raises:
        InputError: the folder's model is none that OpenAI's code could hold.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(folder, "no config.json", expected="a Hugging Face model folder")
    config = WhisperConfig.from_pretrained(folder)
    if config.model_type != "whisper" or {config.encoder_ffn_dim, config.decoder_ffn_dim} != {4 * config.d_model}:
        expected = "Whisper with layers four times as wide inside"
        raise InputError(folder, "not a model that OpenAI's code can hold", config.model_type, expected)
    check_vocabulary(folder, config.vocab_size)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    tensors.pop("proj_out.weight", None)  # the embeddings once more
    sizes = {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    names = weight_names(sizes)
    check_names(folder, tensors, set(names.values()))
    weights = {theirs: tensors[ours] for theirs, ours in names.items()}
    with atomic_write(out) as aside:
        torch.save({"dims": sizes, "model_state_dict": weights}, aside)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        export_openai(*sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
