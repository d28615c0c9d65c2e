"""Tiny bases of each family: the classes of the real ones, with random weights, for shapes and identities only."""

from types import SimpleNamespace

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from loratory.bases.audio import AudioPrefix
from loratory.bases.core import load_base
from loratory.bases.families.whisper import PROMPT
from loratory.bases.prepare import write_manifest
from loratory.training.pretrain import byte_pair_tokenizer, word_tokenizer

TEXTS = [
    "transcribe speech to text",
    "will the user like it",
    "coding noncoding yes no",
    "MKTAYIAK",
    "acg tta gca cgt",
]


def entry(family: str, precision: str = "fp32"):
    given = dict.fromkeys(("hub", "revision", "licence", "whisper"))
    return SimpleNamespace(family=family, precision=precision, note="tiny", **given)


def llama(vocab_size: int = 300, **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**{**sizes, "vocab_size": vocab_size, "max_position_embeddings": 256, **changes})
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    return LlamaForCausalLM(config).eval()


def whisper_config(vocab_size: int = 300) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=vocab_size,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=80,
        max_source_positions=100,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def whisper(vocab_size: int = 300) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(whisper_config(vocab_size)).eval()


def bert(vocab_size: int = 64) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, **dropout, vocab_size=vocab_size, num_labels=2)).eval()


def text_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    core = byte_pair_tokenizer(TEXTS * 4, 300, special, letters=True)
    core.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )


def save(folder, family: str, model, tokenizer, audio=None, precision: str = "fp32"):
    """Writes a prepared base folder and opens it."""
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if audio is not None:
        audio.save(folder / "audio")
    write_manifest(folder, folder.name, entry(family, precision), origin="test")
    return load_base(folder)


def causal_base(folder, ears: bool = True, precision: str = "fp32"):
    tokenizer = text_tokenizer()
    torch.manual_seed(1)
    audio = AudioPrefix(whisper_config(), stack=5, width=32, hidden=24) if ears else None
    return save(folder, "causal", llama(len(tokenizer)), tokenizer, audio, precision)


def whisper_base(folder, precision: str = "fp32"):
    special = ["<|endoftext|>", *PROMPT]
    core = byte_pair_tokenizer(TEXTS * 4, 300, special, letters=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=special[0], pad_token=special[0], additional_special_tokens=list(PROMPT)
    )
    return save(folder, "whisper", whisper(len(tokenizer)), tokenizer, precision=precision)


def encoder_base(folder, precision: str = "fp32"):
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer([TEXTS[-1]], 64, special),
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )
    return save(folder, "encoder", bert(), tokenizer, precision=precision)


def trained_adapter(model, method, seed: int, heads=()):
    """An adapter that looks trained: random B, so that it changes the output."""
    from loratory.adapters import core

    core.attach(model, method, seed, heads)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, core.AdaptedLinear):
            b = module.adapter["B"]
            b.data.copy_(torch.randn(b.shape, generator=generator) * 0.3)
    adapter = core.export(model, heads, {})
    core.detach(model)
    model.requires_grad_(False)
    return adapter


def opinionated(mixture, strength: float = 30):
    """The mixture, its gate strong: it prefers experts."""
    if mixture.gate is not None:
        draw_gate(mixture.gate, 5, 0.02 * strength)
    return mixture


def draw_gate(gate, seed: int, spread: float = 0.02):
    """Draws a gate anew: normal weights, no biases."""
    from loratory.adapters.core import generator_for

    for name, parameter in gate.named_parameters():
        drawn = torch.empty(parameter.shape).normal_(0, spread, generator=generator_for(seed, f"gate.{name}"))
        parameter.data.copy_(drawn if parameter.dim() > 1 else torch.zeros_like(drawn))


def continued(mixture, start: dict, limit: int, in_place=None) -> list[list[int]]:
    """Greedy ids after the prompts in `start`, with caches; `in_place`: `StepsByShape` of the mixture."""
    from loratory.bases.decoding import decode_batch

    def forward(inputs, cache):
        return mixture(**inputs, past_key_values=cache, use_cache=True)

    if in_place is not None:
        rows, length = start["input_ids"].shape
        forward = in_place(forward, rows, length + limit)
    return decode_batch(forward, start, mixture.new_cache(), end=-1, limit=limit)
