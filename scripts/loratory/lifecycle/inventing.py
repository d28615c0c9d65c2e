"""Inputs that nobody made: a generator writes them after a few examples, a discriminator keeps the plausible ones.

Three generators: a causal base is shown the examples and asked for one more; a masked base fills holes in them; and
where a record is asked for as a whole, so that there is no input, the source with its adapter writes records.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from loratory.adapters import core
from loratory.bases.core import IGNORED, Base, Encoded
from loratory.bases.decoding import Sampling, branch_cache, decode_batch, new_cache
from loratory.bases.families.masked import target_places
from loratory.data.batching import batches_by_length
from loratory.data.clips import as_clip
from loratory.data.files import read_json, write_json
from loratory.data.splits import hash_position
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.lifecycle.room import Room
from loratory.training.checkpoint import facts_digest
from loratory.training.encoding import EncodedExamples, split_places
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.recompute import recompute_activations
from loratory.training.session import AdapterSession

if TYPE_CHECKING:
    from loratory.adapters.deltas import Adapter
    from loratory.bases.families.causal import Family as Causal
    from loratory.bases.families.masked import Family as Masked

BATCH = 64  # candidates of one pass
MARK, BLANKS = "### Input", " \n\t"
LENGTHS = (0.5, 1.5)  # of the shortest and the longest seed, in letters: what is shorter or longer is malformed
HELD_OUT = 5  # one of so many tells how good the discriminator is
FEWEST = 10  # inputs of a kind that a discriminator learns from

Writer = Callable[[int], list[str | None]]  # number of a batch -> its candidates; None of a malformed one
Judge = Callable[[Sequence[str]], np.ndarray]  # texts -> (n,) P(real)


# Real records.


def real_examples(room: Room, domain: str, split: str) -> list[Example]:
    """The examples of a split that its base can read, in order."""
    items = cast(EncodedExamples, room.examples(domain, split))
    found, wanted = [], {tuple(place) for place in items.places.tolist()}
    for at, record in enumerate(items.records):
        made = items.make_examples(record)
        found += [example for window, example in enumerate(made) if (at, window) in wanted]
    return found


def choose_seeds(examples: Sequence[Example], number: int, seed: int) -> list[Example]:
    """Examples of different records, by the hashes of their ids."""
    first = {example.id: example for example in reversed(examples)}
    return sorted(first.values(), key=lambda each: (hash_position(each.id, seed), each.id))[:number]


def is_open(examples: Sequence[Example]) -> bool:
    """Whether all are asked the same, so that what is invented is the whole record."""
    return len({(each.prompt, each.choices, each.audio) for each in examples}) == 1


def input_text(example: Example) -> str:
    """What is invented of an example: its prompt, or its target, where that is known and no choice."""
    return example.prompt if example.choices or not example.target else example.target


def input_digest(text: str) -> str:
    """Of what an input says, whatever its case and blanks."""
    return sha256(" ".join(text.casefold().split()).encode()).hexdigest()


def clip_digest(example: Example) -> str:
    clip = as_clip(example.audio)
    return sha256(f"{clip.sha256 or clip.path} {clip.start} {clip.end}".encode()).hexdigest()


class RealInputs:
    """Digests of real inputs but the seeds: nothing with one of them may be learnt from as invented.

    Args:
        digest: of an example's input.
    """

    def __init__(
        self, examples: Iterable[Example], seeds: Iterable[Example], digest: Callable[[Example], str]
    ) -> None:
        self.digest = digest
        self.digests = {digest(each) for each in examples} - {digest(each) for each in seeds}

    def check_none(self, where: str, examples: Iterable[Example]) -> None:
        """Raises:
        InputError: one of the examples is a real one and no seed.
        """
        for example in examples:
            if self.digest(example) in self.digests:
                what, fix = "a real record among what is invented", "find out what has handed it on"
                expected = "the seeds alone, and what nobody made"
                raise InputError(f"{where}:{example.id}", what, None, expected, fix, "leak")


# Generators.


def write_prompts(base: Base, seeds: Sequence[Example], seed: int, options: Any) -> Writer:
    """Candidates by a causal base that is shown the seeds' prompts, in another order each time, as many as fit.

    What all seeds begin with is given, and a candidate ends with what all of them end with.

    Raises:
        InputError: not even one seed fits.
    """
    texts = [each.prompt for each in seeds]
    opening, closing = common_frame(texts)
    limit = 16 + round(LENGTHS[1] * max(len(base.tokens(text[len(opening) :])) for text in texts))

    def encode_shots(batch: int) -> Encoded:
        shown = random.Random(f"{seed} {batch}").sample(texts, len(texts))
        for first in range(len(shown)):
            shots = [f"{MARK} {number}:\n{text.rstrip()}\n\n" for number, text in enumerate(shown[first:], 1)]
            prompt = "".join(shots) + f"{MARK} {len(shots) + 1}:\n{opening}"
            with suppress_too_long():
                item = base.encode(Example("candidate", "", prompt, ""))
                if len(item.ids) + limit <= base.context:
                    return item
        what, fix = "one seed leaves no room for another input", "shorten the records, or take another generator"
        raise InputError(base.folder, what, f"{base.context} tokens", fix=fix, reason="too_long")

    def write(batch: int) -> list[str | None]:
        written = continue_together(base, encode_shots(batch), limit, sampling_of(seed, batch, options))
        ended = [len(base.tokens(text)) < limit for text in written]
        return [read_input(text, opening, closing, whole) for text, whole in zip(written, ended)]

    return write


@contextmanager
def suppress_too_long() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        if error.reason != "too_long":
            raise


@torch.no_grad()
def continue_together(base: Base, item: Encoded, limit: int, sampling: Sampling) -> list[str]:
    """BATCH texts that follow one prompt, which is read once for all of them."""
    causal = cast("Causal", base)

    def forward(inputs: dict[str, Any], cache: Any) -> Any:
        return base.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)

    ids, cache = torch.tensor([item.ids], device=base.device), new_cache(base.model)
    places = torch.arange(ids.shape[1], device=base.device)[None]
    forward({"input_ids": ids[:, :-1], "position_ids": places[:, :-1]}, cache)
    last = {"input_ids": ids[:, -1:], "position_ids": places[:, -1:], "attention_mask": torch.ones_like(ids)}
    rows = {name: tensor.expand(BATCH, -1) for name, tensor in last.items()}
    written = decode_batch(forward, rows, branch_cache(cache, BATCH), causal.end_id, limit, sampling)
    return [cast(str, base.tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in written]


def common_frame(texts: Sequence[str]) -> tuple[str, str]:
    """What all texts begin with, up to a blank, and what they end with, from the end of a word on."""
    opening = common_beginning(texts)
    opening = opening[: max(0, *(opening.rfind(blank) for blank in BLANKS))].rstrip()
    rest = [text[len(opening) :] for text in texts]
    closing = common_beginning([text[::-1] for text in rest])[: min(map(len, rest)) - 1][::-1]
    return opening, closing.lstrip("".join(filter(str.isalnum, closing)))


def common_beginning(texts: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len({*letters}) == 1, zip(*texts))
    return "".join(letters[0] for letters in alike)


def read_input(written: str, opening: str, closing: str, whole: bool) -> str | None:
    """The input in what a generator wrote behind the opening; None if it has no end.

    Args:
        whole: the model itself has ended it.
    """
    body, mark, _ = written.partition(f"\n\n{MARK}")
    end = closing.rstrip()
    if end:
        body, found, _ = body.partition(end)
        return opening + body + closing if found and body.strip() else None
    return opening + body.rstrip() + closing if body.strip() and (mark or whole) else None


def fill_seeds(base: Base, seeds: Sequence[Example], seed: int, options: Any) -> Writer:
    """Candidates by a masked base: seeds with a share of their tokens drawn anew, all at once."""
    masked = cast("Masked", base)
    encoded = [masked.encode(replace(each, id=f"seed {each.id}")) for each in seeds]
    alphabet = encoded[0].alphabet
    allowed = torch.tensor(masked.ordinary_ids, device=base.device)

    @torch.no_grad()
    def write(batch: int) -> list[str | None]:
        rows, holes = [], []
        for row in range(BATCH):
            place = batch * BATCH + row
            item = encoded[place % len(encoded)]
            places = target_places(item)
            chosen = random.Random(f"{seed} {place}").sample(places, max(1, round(options.hidden * len(places))))
            ids = [masked.mask_id if at in chosen else id for at, id in enumerate(item.ids)]
            labels = [id if at in chosen else IGNORED for at, id in enumerate(item.ids)]
            rows.append((ids, labels))
            holes.append((item, sorted(chosen)))
        logits = masked.target_logits(base.model, masked.assemble_batch(rows, alphabet))
        logits = logits if alphabet else logits[:, allowed]
        sampling = sampling_of(seed, batch, options)
        drawn = sampling.token_draw(logits.device)(logits)
        known = torch.tensor(masked.letter_ids(alphabet), device=base.device) if alphabet else allowed
        filling = iter(known[drawn].tolist())
        found: list[str | None] = []
        for item, chosen in holes:
            ids = list(item.ids)
            for at in chosen:
                ids[at] = next(filling)
            found.append(target_text(masked, item, ids))
        return found

    return write


def target_text(base: Base, item: Encoded, ids: Sequence[int]) -> str:
    """The text of what stands where an item's target stood."""
    own = [ids[at] for at in target_places(item)]
    if item.alphabet:
        letter = dict(zip(base.letter_ids(item.alphabet), item.alphabet))
        return "".join(letter[id] for id in own)
    return cast(str, base.tokenizer.decode(own, clean_up_tokenization_spaces=False))


def continue_prompt(base: Base, seeds: Sequence[Example], seed: int, options: Any) -> Writer:
    """Candidates by a causal base that continues the one prompt, and ends as all seeds end."""
    item = base.encode(replace(seeds[0], target=""))
    longest = max(len(base.target_tokens(each)) for each in seeds)
    limit = min(16 + round(LENGTHS[1] * longest), base.context - len(item.ids))
    by_letters, closing = bool(seeds[0].alphabet), common_frame([each.target for each in seeds])[1]

    def write(batch: int) -> list[str | None]:
        written = base.text(base.model, [item] * BATCH, limit, sampling_of(seed, batch, options))
        ended = [by_letters or len(base.tokens(text)) < limit for text in written]
        return [text if whole and text.endswith(closing) else None for text, whole in zip(written, ended)]

    return write


def sampling_of(seed: int, batch: int, options: Any) -> Sampling:
    return Sampling(seed * 1_000_003 + batch, options.temperature)


# What is kept of the candidates.


@dataclass
class Invention:
    """What came of the candidates for one domain.

    Attributes:
        unfiltered: the first well-formed ones, each once. kept: those that the discriminator takes for real.
        candidates, malformed, duplicates, copies, judged, accepted: how many there were; `copies` say the same as a
            real record that was no seed, and are left out.
        accuracy: of the discriminator, on inputs that it has not learnt from.
    """

    unfiltered: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    candidates: int = 0
    malformed: int = 0
    duplicates: int = 0
    copies: int = 0
    judged: int = 0
    accepted: int = 0
    accuracy: float = 0.0

    def measures(self, filtered: bool) -> dict[str, float]:
        """Shares of the candidates; `filtered`: with what the discriminator did."""
        counts = {"malformed": self.malformed, "duplicates": self.duplicates, "copies of real inputs": self.copies}
        found = {what: number / max(1, self.candidates) for what, number in counts.items()}
        judged = {"acceptance": self.accepted / max(1, self.judged), "discriminator accuracy": self.accuracy}
        return found | judged if filtered else found


def invent_inputs(
    write: Writer,
    judge: Judge,
    seeds: Sequence[str],
    real: frozenset[str] | set[str],
    wanted: int,
    most: int,
    threshold: float,
) -> Invention:
    """Draws candidates until there are enough of both kinds, or `most` were drawn.

    Args:
        threshold: what lies above it is kept, so nothing at 1 and everything at 0.
        real: digests of inputs that are real and no seeds.
    """
    found, seen = Invention(), {input_digest(text) for text in seeds}
    lengths = [len(text) for text in seeds]
    shortest, longest = LENGTHS[0] * min(lengths), LENGTHS[1] * max(lengths)
    for batch in count():
        if min(len(found.unfiltered), len(found.kept)) >= wanted or found.candidates >= most:
            return found
        fresh = []
        for text in write(batch):
            found.candidates += 1
            if text is None or not shortest <= len(text) <= longest:
                found.malformed += 1
                continue
            digest = input_digest(text)
            if digest in seen:
                found.duplicates += 1
            elif digest in real:
                found.copies += 1
            else:
                fresh.append(text)
            seen.add(digest)
        taken = [text for text, share in zip(fresh, judge(fresh)) if share > threshold] if fresh else []
        found.judged, found.accepted = found.judged + len(fresh), found.accepted + len(taken)
        found.unfiltered += fresh[: wanted - len(found.unfiltered)]
        found.kept += taken[: wanted - len(found.kept)]
    raise AssertionError("`count` ends nowhere")


def take_all(texts: Sequence[str]) -> np.ndarray:
    return np.ones(len(texts))


def recalled(room: Room, title: str, compute: Callable[[], Invention]) -> Invention:
    """What `compute` gives, from its file if a stopped job has left it."""
    job = room.job(title)
    path, made_with = job.folder / "invention.json", facts_digest(**job.made_with)
    if path.is_file() and (held := read_json(path))["made_with"] == made_with:
        return Invention(**held["invention"])
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"made_with": made_with, "invention": vars(found)})
    return found


# The discriminator.


@contextmanager
def wear_stored(base: Base, adapter: Adapter) -> Iterator[None]:
    """Inside, a base has an adapter on, and answers with it."""
    core.apply(base.model, adapter, base.folder)
    base.model.eval()
    try:
        yield
    finally:
        core.detach(base.model)
        base.model.requires_grad_(False)


def bare_item(base: Base, example: Example) -> Encoded:
    """An input as a base reads it, without an answer: of an open question, the record itself."""
    known = example if input_text(example) == example.target else replace(example, target="")
    item = base.encode(known)
    return replace(item, labels=[IGNORED] * len(item.labels), label=-1)


class Discriminator:
    """Tells real inputs from invented ones: a LoRA on the source, and a linear layer on the mean of its last states.

    Attributes:
        accuracy: on a fifth of the inputs, which it has not learnt from.
    """

    def __init__(self, title: str, room: Room, real: Sequence[Example], invented: Sequence[Example]) -> None:
        for kind, own in (("real", real), ("invented", invented)):
            if len(own) < FEWEST:
                what, expected = f"too few {kind} inputs for a discriminator", f"at least {FEWEST}"
                fix = "raise `tries`, or take another generator or larger data"
                raise InputError(f"lifecycle.{room.name}", what, len(own), expected, fix)
        self.title, self.room, self.base = title, room, room.base
        embeddings = cast(torch.nn.Embedding, self.base.model.get_input_embeddings())
        self.head = torch.nn.Linear(embeddings.weight.shape[1], 1)
        generator = torch.Generator().manual_seed(room.seed)
        self.head.weight.data.normal_(0, 0.02, generator=generator)
        self.head.bias.data.zero_()
        self.head.to(self.base.device)
        pairs = [(bare_item(self.base, each), kind) for kind, own in ((1.0, real), (0.0, invented)) for each in own]
        learnt = [pair for at, pair in enumerate(pairs) if at % HELD_OUT]
        held_out = pairs[::HELD_OUT]
        self.adapter = self.learn([item for item, _ in learnt], [kind for _, kind in learnt])
        shares = self.shares_of_items([item for item, _ in held_out])
        self.accuracy = float(np.mean((shares > 0.5) == np.array([kind > 0.5 for _, kind in held_out])))

    def learn(self, items: Sequence[Encoded], kinds: Sequence[float]) -> Adapter:
        room, base, recipe = self.room, self.base, self.room.recipe
        layers = core.attach(base.model, room.method, room.seed, base.heads)
        session = AdapterSession(base, room.method, layers, items, recipe, room.seed)
        plan, job = session.batch_plan(items), room.job(self.title)
        head = {f"discriminator.{name}": parameter for name, parameter in self.head.named_parameters()}

        def micro_batches(step: int) -> list[MicroBatch]:
            found = []
            for chosen in (part for n in recipe.batch_numbers(step) for part in split_places(plan(n), items, recipe)):
                asked = torch.tensor([kinds[i] for i in chosen], device=base.device)
                batch = base.collate([items[i] for i in chosen]) | {"kinds": asked}
                found.append(MicroBatch("inputs", batch, len(chosen)))
            return found

        def loss(micro: MicroBatch) -> Loss:
            kinds = micro.batch["kinds"]
            logits = self.logits({name: tensor for name, tensor in micro.batch.items() if name != "kinds"})
            return Loss(F.binary_cross_entropy_with_logits(logits, kinds, reduction="sum"), len(kinds))

        base.model.train()
        try:
            parameters = {**core.trainable_parameters(base.model), **head}
            torch.manual_seed(room.seed)
            with recompute_activations(base.model, room.adapter.training.gradient_checkpointing):
                train_model(
                    parameters,
                    micro_batches,
                    loss,
                    recipe,
                    room.seed,
                    *job.folder_and_title,
                    hooks=session,
                    made_with=job.made_with,
                )
            return core.export(base.model, base.heads, {})
        finally:
            base.model.eval()
            core.detach(base.model)
            base.model.requires_grad_(False)
            self.head.requires_grad_(False)

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`[batch]`, above 0 for what looks real."""
        body = self.base.model.base_model
        states = body(**self.base.inputs(batch)).last_hidden_state.float()
        mask = batch["mask"].to(states.dtype)[..., None]
        return self.head((states * mask).sum(1) / mask.sum(1)).squeeze(1)

    @torch.no_grad()
    def shares_of_items(self, items: Sequence[Encoded]) -> np.ndarray:
        """(n,) P(real)."""
        found = np.zeros(len(items))
        with wear_stored(self.base, self.adapter):
            for chosen in batches_by_length([item.length for item in items], self.room.recipe.batch_tokens):
                logits = self.logits(self.base.collate([items[i] for i in chosen]))
                found[chosen] = logits.double().sigmoid().cpu().numpy()
        return found

    def shares(self, examples: Sequence[Example]) -> np.ndarray:
        """(n,) P(real) of inputs."""
        return self.shares_of_items([bare_item(self.base, each) for each in examples])


def mean_of(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """{what: mean} over domains."""
    return {what: float(np.mean([each[what] for each in measured])) for what in measured[0]}
