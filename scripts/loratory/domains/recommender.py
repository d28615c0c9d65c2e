"""A sequential recommender: what somebody did before, weighed by how it bears on what is asked now.

A small Deep Interest Network (Zhou et al. 2018, arXiv:1706.06978): attention over past events, with the item that is
asked about as the query. With `searched` it is a Search-based Interest Model (Qi et al. 2020, arXiv:2006.05639) of
soft search: attention over those past events alone that are nearest to that item. It is a control, and the recommender
whose view of a user RecLoRA's gate reads. Items are known by hashes, each the sum of two rows of one table (Svenstrup
et al. 2017, arXiv:1709.03933), so that no size depends on data; an item that was not learnt from is zero. There are no
embeddings of users: splits by time test mostly users that were never seen, and their past says who they are.

Differences from the papers: attention is a softmax. The search compares the embeddings as they are; they learn in the
same training, by the means over all events, and not in one before. Times are not told. There is no hard search:
records carry titles of items, no categories.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from loratory.data.batching import pad_contexts
from loratory.domains.contract import Context

BUCKETS = 1 << 13  # rows of the table of items
WIDTH = 16  # of an item's embedding
HIDDEN = 32  # of the view of a user
DROPOUT = 0.2
EPOCHS, PATIENCE = 30, 4  # most passes over the records, and how many of them may bring nothing
HELD_OUT = 0.1  # share of the records, the last, that say when to stop
FEWEST = 200  # records below which none can be spared for that
BATCH, STEPS = 256, 30  # most records of a step, and steps of a pass as long as there are fewer
RATE, DECAY = 3e-3, 1e-4


class DeepInterest(nn.Module):
    """Logit that a user likes an item, and the hidden state behind it.

    Attributes:
        known: `[BUCKETS]`, which rows of the table were learnt from.
        centre, spread: of the values of past events.
        searched: how many past events attention reads, those nearest to the item that is asked about; all, if None.
    """

    known: torch.Tensor
    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self, searched: int | None = None) -> None:
        super().__init__()
        self.searched = searched
        self.items = nn.Embedding(BUCKETS, WIDTH)
        nn.init.normal_(self.items.weight, 0, 0.1)
        self.register_buffer("known", torch.zeros(BUCKETS, dtype=torch.bool))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))
        self.attention = nn.Sequential(nn.Linear(4 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        inner = 5 * WIDTH + 4
        self.body = nn.Sequential(
            *(nn.Linear(inner, 2 * HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT)),
            *(nn.Linear(2 * HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT)),
        )
        self.head = nn.Linear(HIDDEN, 1)

    def user_vectors(self, context: torch.Tensor) -> torch.Tensor:
        """`[batch, HIDDEN]` of what is asked about whom.

        Args:
            context: `[batch, 1 + events, 2]`, rows of `Context`, zeros behind each one's end.
        """
        items = self.item_vectors(context[..., 0])
        target, past = items[:, :1], items[:, 1:]
        there = context[:, 1:, 0] > 0
        value = ((context[:, 1:, 1] - self.centre) / self.spread) * there
        query = target.expand_as(past)
        scores = self.attention(torch.cat([past, query, past * query, past - query], -1))[..., 0]
        read = there if self.searched is None else there & nearest_events(target, past, there, self.searched)
        share = scores.masked_fill(~read, -1e9).softmax(-1) * read
        events = there.sum(-1, keepdim=True)
        liked = (share[..., None] * value[..., None] * past).sum(1)
        interest = (share[..., None] * past).sum(1)
        general = (value[..., None] * past).sum(1) / events.clamp(min=1)
        mean = value.sum(-1, keepdim=True) / events.clamp(min=1)
        square = value.square().sum(-1, keepdim=True) / events.clamp(min=1)
        numbers = [(share * value).sum(-1, keepdim=True), mean, square, events.float().log1p()]
        asked = target[:, 0]
        return self.body(torch.cat([asked, interest, liked, general, asked * (liked + general), *numbers], -1))

    def past_vectors(self, context: torch.Tensor) -> torch.Tensor:
        """`[batch, 2 * WIDTH]` of whom, whatever is asked about: the mean of past items, and of each by its value.

        Args:
            context: as of `user_vectors`.
        """
        past, there = self.item_vectors(context[:, 1:, 0]), context[:, 1:, 0] > 0
        value = ((context[:, 1:, 1] - self.centre) / self.spread) * there
        sums = torch.cat([past.sum(1), (value[..., None] * past).sum(1)], -1)
        return sums / there.sum(-1, keepdim=True).clamp(min=1)

    def item_vectors(self, keys: torch.Tensor) -> torch.Tensor:
        """`[…, WIDTH]`; zero where an item was not learnt from."""
        first, second = item_rows(keys)
        seen = self.known[first] & self.known[second] & (keys > 0)
        return (self.items(first) + self.items(second)) * seen[..., None]

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """`[batch]` log odds."""
        return self.head(self.user_vectors(context))[:, 0]

    @torch.no_grad()
    def note_items(self, context: torch.Tensor) -> None:
        """Marks what is learnt from, and measures the values of past events."""
        for rows in item_rows(context[..., 0][context[..., 0] > 0]):
            self.known[rows] = True
        values = context[:, 1:, 1][context[:, 1:, 0] > 0].float()
        if len(values):
            self.centre.fill_(values.mean())
            self.spread.fill_(values.std(correction=0).clamp(min=1e-3))


def item_rows(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two rows of an item in the table."""
    return keys % BUCKETS, keys // BUCKETS % BUCKETS


def nearest_events(target: torch.Tensor, past: torch.Tensor, there: torch.Tensor, n: int) -> torch.Tensor:
    """`[batch, events]` bool: the `n` past items whose inner product with the target is the largest, later ones first
    among equals, as all are if the target was not learnt from.

    Args:
        target: `[batch, 1, width]`. past: `[batch, events, width]`, oldest first. there: `[batch, events]` bool.
    """
    likeness = (target * past).sum(-1).masked_fill(~there, -torch.inf)
    latest_first = likeness.flip(-1).argsort(dim=-1, descending=True, stable=True)
    chosen = past.shape[1] - 1 - latest_first[:, :n]
    return torch.zeros_like(there).scatter(-1, chosen, True)


def fit_recommender(
    contexts: Sequence[Context], labels: Sequence[int], seed: int, searched: int | None = None
) -> DeepInterest:
    """Learns from records; the last of them, which should be the latest, say when to stop.

    Args:
        labels: 1 where the item was liked.
        seed: of starts, dropout and the order of batches; nothing else is drawn from or moved.
        searched: see `DeepInterest`.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model, given, truth = (
            DeepInterest(searched),
            torch.from_numpy(pad_contexts(contexts)),
            torch.tensor(labels, dtype=torch.float32),
        )
        learnt = len(given) - (int(HELD_OUT * len(given)) if len(given) >= FEWEST else 0)
        model.note_items(given[:learnt])
        nn.init.constant_(model.head.bias, float(torch.logit(truth.mean().clamp(0.02, 0.98))))
        return train_epochs(model, (given[:learnt], truth[:learnt]), (given[learnt:], truth[learnt:]))


def train_epochs(
    model: DeepInterest, learnt: tuple[torch.Tensor, ...], held: tuple[torch.Tensor, ...]
) -> DeepInterest:
    """The model of the pass after which the held-out records were told best; without any, of a tenth of the passes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    size = min(BATCH, max(1, len(learnt[0]) // STEPS))
    best, kept, waited = float("inf"), deepcopy(model.state_dict()), 0
    for _ in range(EPOCHS if len(held[0]) else EPOCHS // 10):
        model.train()
        for rows in torch.randperm(len(learnt[0])).split(size):
            context = trim_padding(learnt[0][rows])
            loss = binary_cross_entropy_with_logits(model(context), learnt[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        if not len(held[0]):
            continue
        with torch.no_grad():
            odds = torch.cat([model(part) for part in batches_of(held[0])])
        value = float(binary_cross_entropy_with_logits(odds, held[1]))
        if value < best:
            best, kept, waited = value, deepcopy(model.state_dict()), 0
        elif (waited := waited + 1) == PATIENCE:
            break
    if len(held[0]):
        model.load_state_dict(kept)
    return model.eval()


@torch.no_grad()
def like_probabilities(model: DeepInterest, contexts: Sequence[Context]) -> list[float]:
    """P(liked) of each record."""
    if not contexts:
        return []
    return (
        torch.cat([model(part) for part in batches_of(torch.from_numpy(pad_contexts(contexts)))])
        .double()
        .sigmoid()
        .tolist()
    )


def batches_of(contexts: torch.Tensor) -> Iterator[torch.Tensor]:
    return map(trim_padding, contexts.split(16 * BATCH))


def trim_padding(context: torch.Tensor) -> torch.Tensor:
    """Without the columns that are padding in all rows."""
    return context[:, : max(1, int((context[..., 0] > 0).sum(1).max()))]
