"""Written texts with their log-probabilities: greedy, sampled, or the best of several beams.

Beams are openai-whisper's (`BeamSearchDecoder` without patience, ranked by log-probability over length), which are
neither pruned by length nor stopped early.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from loratory.bases.decoding import Sampling, decode_batch, reorder_cache


@dataclass(frozen=True)
class Written:
    """What one row wrote.

    Attributes:
        ids: without end. log_prob: summed over the ids and the end, in nats.
        no_speech: probability that nobody speaks, as openai-whisper's `no_speech_prob`; None where it is not asked.
    """

    ids: list[int]
    log_prob: float
    no_speech: float | None = None

    @property
    def mean_log_prob(self) -> float:
        """As openai-whisper's `avg_logprob`."""
        return self.log_prob / (len(self.ids) + 1)


class LogProbs:
    """Sums the log-probability of what each row writes, up to its end, while `decode_steps` runs."""

    def __init__(self, rows: int, end: int, device: torch.device):
        self.end, self.sums = end, torch.zeros(rows, device=device)

    def __call__(self, written: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """A `stopping` that stops no row."""
        going_on = ~(written[:, :-1] == self.end).any(1)
        latest = logits.log_softmax(-1).gather(1, written[:, -1:])[:, 0]
        self.sums += latest.where(going_on, 0)
        return torch.zeros_like(going_on)


def decode_scored(
    forward: Callable, inputs: dict[str, Any], cache: Any, end: int, limit: int, sampling: Sampling | None = None
) -> list[Written]:
    """As `decode_batch`; log-probabilities are of the logits as they are, whatever the temperature."""
    scores = LogProbs(len(inputs["attention_mask"]), end, inputs["attention_mask"].device)
    rows = decode_batch(forward, inputs, cache, end, limit, sampling, stopping=scores)
    return [Written(ids, score) for ids, score in zip(rows, scores.sums.tolist())]


@torch.no_grad()
def decode_beams(
    forward: Callable, inputs: dict[str, Any], cache: Any, end: int, limit: int, beams: int
) -> list[Written]:
    """The best of `beams` candidates of each text, by log-probability over length.

    Args:
        forward: see `decode_steps`. inputs: `input_ids` `[texts · beams, length]`, each text's `beams` rows together.
    """
    texts = len(inputs["input_ids"]) // beams
    device = inputs["input_ids"].device
    sums = torch.full((texts, beams), -torch.inf, device=device)
    sums[:, 0] = 0  # at first all beams of a text are one
    written = torch.zeros(texts, beams, 0, dtype=torch.long, device=device)
    finished: list[list[Written]] = [[] for _ in range(texts)]
    first_rows = torch.arange(texts, device=device)[:, None] * beams
    for step in range(limit):
        logits = forward(inputs, cache).logits[:, -1].float()
        scores = sums[..., None] + logits.log_softmax(-1).view(texts, beams, -1)
        best, places = scores.flatten(1).topk(2 * beams)  # at most one of each beam ends it: so many can go on
        sources, tokens = places // logits.shape[-1], places % logits.shape[-1]
        kept = [
            continue_beams(best[text], sources[text], tokens[text], written[text], finished[text], end, beams)
            for text in range(texts)
        ]
        if all(len(each) >= beams for each in finished):
            break
        chosen = torch.tensor(kept, device=device)
        sums, sources, tokens = (tensor.gather(1, chosen) for tensor in (best, sources, tokens))
        earlier = written.gather(1, sources[..., None].expand(-1, -1, step))
        written = torch.cat([earlier, tokens[..., None]], 2)
        reorder_cache(cache, (first_rows + sources).flatten())
        inputs = {"input_ids": tokens.reshape(-1, 1)}
    for text, each in enumerate(finished):
        live = sums[text].argsort(descending=True).tolist()[: max(0, beams - len(each))]
        each += [Written(written[text, beam].tolist(), float(sums[text, beam])) for beam in live]
    return [max(each, key=lambda one: one.log_prob / max(1, len(one.ids))) for each in finished]


def continue_beams(
    scores: torch.Tensor,
    sources: torch.Tensor,
    tokens: torch.Tensor,
    written: torch.Tensor,
    finished: list[Written],
    end: int,
    beams: int,
) -> list[int]:
    """Places of the best candidates of one text that go on; those before them that end are added to `finished`."""
    kept: list[int] = []
    for place, (score, source, token) in enumerate(zip(scores.tolist(), sources.tolist(), tokens.tolist())):
        if token != end:
            kept.append(place)
        elif len(finished) < beams:
            finished.append(Written(written[source].tolist(), score))
        if len(kept) == beams:
            break
    return kept
