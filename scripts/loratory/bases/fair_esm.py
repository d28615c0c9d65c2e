"""ESM-2 checkpoints of fair-esm (`.pt`: options and weights) as model folders of transformers.

Nothing that a checkpoint pickles is run. The numbers stay what they are, in the precision that they are stored in.
What predicts contacts lies in a second file (`…-contact-regression.pt`), which nothing here reads.

Source: Lin et al. 2023, doi:10.1126/science.ade2574; https://github.com/facebookresearch/esm.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

from loratory.bases.core import CONTACTS
from loratory.bases.pickles import read_pickle
from loratory.data.files import atomic_write
from loratory.errors import InputError, one_error

EXPECTED = "an ESM-2 checkpoint of fair-esm"
# fair-esm's tokens by their numbers; residues from the most to the least frequent
TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
LONGEST = 1024  # tokens, of which 1,022 residues: as in its training
SIZES = {  # fair-esm's option: that of `EsmConfig`
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_attention_heads": "num_attention_heads",
}
OUTER = {
    "embed_tokens": "esm.embeddings.word_embeddings",
    "emb_layer_norm_after": "esm.encoder.emb_layer_norm_after",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
}
BLOCK = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}
FREQUENCIES = ".self_attn.rot_emb.inv_freq"  # of rotary positions, in each layer the same; as stored, maybe rounded
UNFIT = "not the options of ESM-2", "sizes that fit together"
LEFT_OUT = re.compile(rf"lm_head\.weight|layers\.[1-9]\d*{re.escape(FREQUENCIES)}|{CONTACTS}\..*")


def esm_config(**fields: Any) -> EsmConfig:
    """The config of an ESM-2 model; `fields` give its sizes. Layers are four times as wide inside."""
    ids = {"vocab_size": len(TOKENS), "pad_token_id": TOKENS.index("<pad>"), "mask_token_id": TOKENS.index("<mask>")}
    ends = {"bos_token_id": TOKENS.index("<cls>"), "eos_token_id": TOKENS.index("<eos>")}
    traits = {"position_embedding_type": "rotary", "token_dropout": True, "layer_norm_eps": 1e-5}
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    longest = {"max_position_embeddings": LONGEST + ids["pad_token_id"] + 1}
    inner = {"intermediate_size": 4 * fields["hidden_size"]} if "hidden_size" in fields else {}
    config = EsmConfig(**{**traits, **rates, **longest, **inner, **fields, **ids, **ends})
    config.architectures = ["EsmForMaskedLM"]
    return config


def esm_tokenizer(folder: Path) -> EsmTokenizer:
    """The tokenizer of ESM-2, whose vocabulary is written into the folder."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(TOKENS))
    return EsmTokenizer(str(path), model_max_length=LONGEST)


def read_checkpoint(path: Path | str) -> tuple[EsmConfig, dict[str, torch.Tensor]]:
    """The config and the weights of a `.pt` file, the latter by the names of transformers.

    Raises:
        InputError: no such file, no checkpoint of ESM-2, weights of other names or shapes than its options say, or one
            that holds more than numbers and options (code is not run).
    """
    content = read_pickle(path, EXPECTED, (Namespace,))
    found = content if isinstance(content, dict) else {}
    options, weights = found.get("cfg"), found.get("model")
    options = options.get("model") if isinstance(options, dict) else None
    if not isinstance(options, Namespace) or not isinstance(weights, dict):
        what, fix = "not a checkpoint of ESM-2", "ESM-1, ESM-1v and MSA Transformer are other models"
        raise InputError(path, what, ", ".join(map(str, found)), "`cfg` with `model`, and `model`", fix)
    config = checkpoint_config(path, vars(options))
    return config, rename_weights(path, weights, config)


def checkpoint_config(path: Path | str, options: Mapping[str, Any]) -> EsmConfig:
    """Raises:
    InputError: an option is missing, or sizes do not fit together.
    """
    sizes = {name: options.get(name) for name in SIZES}
    dropout = options.get("token_dropout")
    if not all(isinstance(n, int) and n > 0 for n in sizes.values()) or not isinstance(dropout, bool):
        given = str({**sizes, "token_dropout": dropout})
        raise InputError(path, "not the options of ESM-2", given, "sizes above 0, and whether `token_dropout`")
    with one_error(path, *UNFIT, of=(ValueError, TypeError)):
        return esm_config(**{SIZES[name]: n for name, n in sizes.items()}, token_dropout=dropout)


def rename_weights(path: Path | str, weights: Mapping[str, Any], config: EsmConfig) -> dict[str, torch.Tensor]:
    """{name of transformers: weight}. Errors as in `read_checkpoint`."""
    given = {re.sub(r"^encoder\.(sentence_encoder\.)?", "", str(name)): tensor for name, tensor in weights.items()}
    check_equal(path, given, "lm_head.weight", "embed_tokens.weight")
    for name in given:
        if name.endswith(FREQUENCIES):
            check_equal(path, given, name, f"layers.0{FREQUENCIES}")
    given = {name: tensor for name, tensor in given.items() if not LEFT_OUT.fullmatch(name)}
    names = weight_names(min(config.num_hidden_layers, len(given)))  # which are too many then, if not so many layers
    for what, wrong in (("missing", names.keys() - given.keys()), ("unexpected", given.keys() - names.keys())):
        if wrong:
            line = f"{len(wrong)} weights are {what}, such as {min(wrong)}"
            raise InputError(path, line, None, "ESM-2's alone", "give the checkpoint of one whole model")
    with one_error(path, *UNFIT, of=ValueError), torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in EsmForMaskedLM(config).state_dict().items()}
    for theirs, ours in names.items():
        shape = getattr(given[theirs], "shape", None)
        if shape != shapes[ours]:
            raise InputError(f"{path}:{theirs}", "wrong size", shape and str(tuple(shape)), str(tuple(shapes[ours])))
    return {ours: given[theirs].contiguous() for theirs, ours in names.items()}


def check_equal(path: Path | str, weights: Mapping[str, Any], name: str, other: str) -> None:
    """Raises:
    InputError: two weights, if both are there, differ that are one in every ESM-2.
    """
    first, second = weights.get(name), weights.get(other)
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and not torch.equal(first, second):
        raise InputError(f"{path}:{name}", "differs from what it is in every ESM-2", None, f"the numbers of {other}")


def weight_names(layers: int) -> dict[str, str]:
    """{fair-esm's name: that of transformers} of every weight of a model with so many layers."""
    modules = dict(OUTER)
    for i in range(layers):
        modules |= {f"layers.{i}.{theirs}": f"esm.encoder.layer.{i}.{ours}" for theirs, ours in BLOCK.items()}
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}
    del names["embed_tokens.bias"]
    return names | {"lm_head.bias": "lm_head.bias", f"layers.0{FREQUENCIES}": "esm.rotary_embeddings.inv_freq"}


def import_fair_esm(path: Path | str, out: Path | str) -> None:
    """Writes the model folder of a `.pt` checkpoint: config, weights as safetensors, tokenizer.

    Raises:
        InputError: as `read_checkpoint`.
    """
    config, weights = read_checkpoint(path)
    with atomic_write(out) as aside:
        aside.mkdir(parents=True)
        config.save_pretrained(aside)
        esm_tokenizer(aside).save_pretrained(aside)
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
