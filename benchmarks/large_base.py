"""A LoRA on a base of Llama 3 8B's shape, in bf16 and nf4: what it takes of a GPU, beside what was estimated before.

    python benchmarks/large_base.py [--tokens 4096] [--steps 6] [--precisions bf16 nf4]

The weights are random and made on the device: time and memory are shown, and nothing that it learns means anything.
`--width`, `--layers` and `--device cpu` are for a small trial.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loratory.adapters import core
from loratory.adapters.methods.lora import Method
from loratory.bases.core import MANIFEST, family_class
from loratory.bases.options import PACKED
from loratory.bases.precision import packing
from loratory.data.files import write_json
from loratory.training.memory import estimate_training
from loratory.training.pretrain import byte_pair_tokenizer
from loratory.training.schedule import Training

LENGTH = 512


def shape(width: int, layers: int) -> LlamaConfig:
    heads = max(1, width // 128)
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=width,
        intermediate_size=int(3.5 * width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )


def random_model(config: LlamaConfig, precision: str, device: str) -> LlamaForCausalLM:
    """Weights in bf16, or packed one by one."""
    if precision not in PACKED:
        with torch.device(device):
            return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    import bitsandbytes as bnb
    from transformers.integrations import replace_with_bnb_linear

    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=packing(precision))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            made = torch.randn(parameter.shape, dtype=torch.bfloat16, device=device) * 0.02
            made = made + 1 if parameter.dim() == 1 else made
            if isinstance(parameter, bnb.nn.Params4bit):
                made = torch.randn(module.out_features, module.in_features, dtype=torch.bfloat16, device=device) * 0.02
                packed = bnb.nn.Params4bit(made, requires_grad=False, quant_type="nf4", compress_statistics=True)
            elif isinstance(parameter, bnb.nn.Int8Params):
                packed = bnb.nn.Int8Params(made, requires_grad=False, has_fp16_weights=False)
            else:
                packed = torch.nn.Parameter(made, requires_grad=False)
            setattr(module, name, packed.to(device))
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def write_description(folder: Path, config: LlamaConfig, precision: str) -> None:
    """All of a base's folder but its weights."""
    config.save_pretrained(folder)
    words = byte_pair_tokenizer(["acg tta gca"] * 4, 300, ["<|pad|>", "<|end|>"], letters=True)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|pad|>", eos_token="<|end|>").save_pretrained(folder)
    facts = {"name": "random", "family": "causal", "precision": precision, "weights": "random", "weights_sha256": ""}
    write_json(folder / MANIFEST, facts)


def measure(folder: Path, config: LlamaConfig, precision: str, options: argparse.Namespace) -> None:
    write_description(folder, config, precision)
    recipe, method, device = Training(batch_tokens=options.tokens, precision="bf16"), Method(rank=16), options.device
    started = perf_counter()
    estimate = estimate_training(folder, method, recipe, device)
    print(f"{precision}: estimated in {perf_counter() - started:.1f} s: {estimate}", flush=True)
    started = perf_counter()
    model = random_model(config, precision, device).requires_grad_(False).eval()
    base = family_class("causal")(
        folder, {"weights_sha256": ""}, model, PreTrainedTokenizerFast.from_pretrained(folder)
    )
    core.attach(model, method, 0)
    parameters = list(core.trainable_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters)
    print(f"{precision}: made and adapted in {perf_counter() - started:.1f} s, {sum(p.numel() for p in parameters):,}")
    rows = max(1, options.tokens // LENGTH)
    ids = torch.randint(3, config.vocab_size, (rows, min(LENGTH, options.tokens)), device=device)
    batch = {"ids": ids, "mask": torch.ones_like(ids), "labels": ids}
    model.train()
    seconds = []
    for _ in range(options.steps):
        started = perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss, targets = base.loss(model, batch)
        (loss / targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach()) / targets  # waits for the device
        seconds.append(perf_counter() - started)
    fastest = min(seconds)
    speed = f"{ids.numel() / fastest:,.0f} positions a second"
    print(f"{precision}: {fastest:.3f} s a step of {ids.numel()} positions, {speed}, loss {value:.2f}")
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        print(f"{precision}: peak {peak / 1e9:.2f} GB, estimate / peak {estimate.total / peak:.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "nf4"], choices=["bf16", "int8", "nf4"])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    place = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    config = shape(options.width, options.layers)
    print(f"random weights, width {options.width}, {options.layers} layers, {place}, torch {torch.__version__}")
    for precision in options.precisions:
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with TemporaryDirectory() as scratch:
            measure(Path(scratch, "base"), config, precision, options)
