"""How mixtures weigh their experts token by token where one input is of several domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loratory.bases.core import IGNORED, Encoded, load_base, too_long_error
from loratory.data.files import write_json
from loratory.domains.contract import Example
from loratory.domains.examples import domain_examples, read_records
from loratory.mixers.core import Mixture
from loratory.mixers.store import open_mixture

if TYPE_CHECKING:
    from loratory.bases.core import Base
    from loratory.domains.contract import TaskOptions

AUDIO_MARK = "♪"  # stands for a position of a clip


def route_tokens(
    base_folder: Path | str,
    mixtures: Mapping[str, Path | str],
    prompts: Mapping[str, Sequence[str]],
    data: Mapping[str, Path | str],
    tasks: Mapping[str, TaskOptions],
    device: str,
    out: Path | str,
) -> None:
    """Writes {mixture: {prompt: what `token_weights` returns}} to the JSON file `out`.

    Args:
        mixtures: {name: folder}, of one causal base. prompts: {name: domains whose records are one input}.
        data: {domain: dataset folder}. tasks: {domain: task options}.

    Raises:
        InputError: an input does not fit into the base's context.
    """
    base, found = load_base(base_folder, device), {}
    domains = {domain for names in prompts.values() for domain in names}
    records = {d: domain_examples(d, read_records(data[d], "test", 1), tasks[d], base.family)[0] for d in domains}
    inputs = {name: join_examples(base, [(d, records[d]) for d in names]) for name, names in prompts.items()}
    for name, folder in mixtures.items():
        mixture = open_mixture(folder, base)
        found[name] = {prompt: token_weights(base, mixture, *given) for prompt, given in inputs.items()}
        mixture.remove_experts()
    write_json(out, found)


def join_examples(base: Base, questions: Sequence[tuple[str, Example]]) -> tuple[Encoded, list[str]]:
    """Questions of several domains as one input, and the domain of each position; only the first may have audio.

    An answer that is chosen or transcribed is left out; one that continues its prompt, as a sequence does, is read.
    """
    (_, first), *_ = questions
    ids: list[int] = []
    domains: list[str] = []
    for domain, question in questions:
        part = base.prompt_tokens(question) if ids else base.encode(replace(question, target="")).ids
        if not (question.audio or question.choices):
            part = part + base.target_tokens(question)
        ids, domains = ids + part, domains + [domain] * len(part)
    if len(ids) > base.context:
        raise too_long_error(base.folder, first.id, len(ids), base.context)
    audio_tokens = base.audio_tokens(first) if first.audio else 0
    return Encoded(ids, [IGNORED] * len(ids), len(ids), first.audio, audio_tokens), domains


def token_weights(base: Base, mixture: Mixture, item: Encoded, domains: list[str]) -> Mapping:
    """`experts`; and of each position its token in `tokens`, its domain in `domains`, and in `weights` those of the
    experts, mean over layers."""
    batch = base.collate([item])
    is_audio = batch["is_audio"][0].tolist() if item.audio else [False] * len(item.ids)
    weights = mixture.token_routing(**base.inputs(batch), **base.routing_inputs(mixture, batch)).double().mean(2)
    return {
        "experts": mixture.names,
        "tokens": [AUDIO_MARK if audio else base.tokenizer.decode([id]) for id, audio in zip(item.ids, is_audio)],
        "domains": domains,
        "weights": torch.round(weights.expand(1, len(item.ids), -1)[0], decimals=6).tolist(),
    }
