"""Generation from mixtures: equal to running everything anew, whatever is shared, held or kept in place."""

from typing import ClassVar

import pytest
import torch
from models import llama, opinionated, text_tokenizer, trained_adapter

from loratory.adapters.methods.lora import Method
from loratory.bases.decoding import Sampling
from loratory.errors import InputError
from loratory.mixers.contract import Mixer
from loratory.mixers.core import Mixture
from loratory.mixers.generation import FixedSteps, generate, run_prefix, stream_tokens
from loratory.mixers.methods.uniform import Mixer as Uniform
from loratory.mixers.methods.xlora import Mixer as XLora

IDS = torch.arange(2 * 7).view(2, 7) % 40 + 3
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
CLOSE = {"rtol": 0, "atol": 1e-5}
NEW = 10


class OfInput(Mixer):
    """Each layer weighs the experts by its own input."""

    reads: ClassVar[str] = "input"

    def routing_weights(self, gate, seen, sizes):
        return (seen.input[..., :2] * 5).softmax(-1)


MIXERS = {
    "xlora": XLora(),
    "sequence": XLora(per="sequence"),
    "sparse": XLora(top_k=1),
    "uniform": Uniform(),
    "input": OfInput(),
}


def mixture(mixer, ranks=(2, 3), **changes) -> Mixture:
    experts = {str(rank): trained_adapter(llama(**changes), Method(rank=rank), rank) for rank in ranks}
    return opinionated(Mixture(llama(**changes), experts, mixer)).eval()


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def anew(model, ids=IDS, mask=MASK, tokens=NEW):
    """Greedy ids, and the logits that chose them, from running the whole text for each token."""
    written, logits, prompt = [], [], mask.bool()
    for _ in range(tokens):
        facts = {"prompt": torch.nn.functional.pad(prompt, (0, ids.shape[1] - prompt.shape[1]))}
        facts = facts if isinstance(model, Mixture) else {}
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, **facts)
        logits.append(out.logits[:, -1])
        written.append(logits[-1].argmax(-1))
        ids = torch.cat([ids, written[-1][:, None]], 1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return torch.stack(written, 1).tolist(), torch.stack(logits, 1)


def shown(model) -> list[torch.Tensor]:
    """Collects the last logits of each pass of the model with its head."""
    found = []
    inner = model.model if isinstance(model, Mixture) else model
    inner.register_forward_hook(lambda module, args, output: found.append(output.logits[:, -1].clone()))
    return found


def passes(made: Mixture) -> list[str]:
    """Collects which passes run: with experts or bare."""
    found = []
    made.model.model.register_forward_hook(
        lambda *_: found.append("bare" if made.context.weights is None else "mixed")
    )
    return found


@pytest.mark.parametrize("place", ["growing", "fixed"])
@pytest.mark.parametrize("kind", [*MIXERS, "none"])
def test_greedy_tokens_and_logits_are_those_of_running_everything_anew(kind, place):
    model = llama() if kind == "none" else mixture(MIXERS[kind])
    expected, logits = anew(model)
    found = shown(model)
    fixed = FixedSteps(model, 2, 20) if place == "fixed" else None
    assert generate(model, IDS, MASK, max_new_tokens=NEW, eos=(), fixed=fixed) == expected
    torch.testing.assert_close(torch.stack(found, 1), logits, **CLOSE)


def test_grouped_heads_and_tied_embeddings_in_place_are_exact():
    made = mixture(XLora(), num_key_value_heads=2, tie_word_embeddings=True)
    expected, _ = anew(made)
    assert generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), fixed=FixedSteps(made, 2, 17)) == expected


def test_steps_in_place_serve_one_request_after_another():
    made = mixture(XLora())
    fixed = FixedSteps(made, 2, 24)
    for shift, width in ((0, 7), (5, 4), (9, 7)):
        ids, mask = IDS[:, -width:] + shift, MASK[:, -width:]
        expected, _ = anew(made, ids, mask)
        assert generate(made, ids, mask, max_new_tokens=NEW, eos=(), fixed=fixed) == expected


def test_steps_that_cannot_be_captured_go_on_as_they_are(monkeypatch, capsys):
    made = mixture(XLora())
    fixed = FixedSteps(made, 2, 20, capture=True)

    def captured():
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(fixed, "capture_step", captured)
    assert generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), fixed=fixed) == anew(made)[0]
    assert capsys.readouterr().out == "steps are not replayed: operation not permitted when stream is capturing\n"


@pytest.mark.parametrize("place", ["growing", "fixed"])
def test_samples_depend_on_the_seed_and_not_on_where_caches_lie(place):
    made = mixture(XLora())
    fixed = FixedSteps(made, 2, 20) if place == "fixed" else None
    drawn = {seed: Sampling(seed, temperature=0.8, top_k=50, top_p=0.95) for seed in (1, 2)}
    first, again, other = (
        generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), sampling=drawn[seed], fixed=fixed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first == generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), sampling=drawn[1])


def test_a_row_writes_the_same_alone_and_in_a_padded_batch():
    made = mixture(XLora())
    together = generate(made, IDS, MASK, max_new_tokens=NEW, eos=())
    assert generate(made, IDS[:1, 2:], max_new_tokens=NEW, eos=()) == together[:1]
    assert generate(made, IDS[1:], max_new_tokens=NEW, eos=()) == together[1:]


def test_a_stream_gives_each_token_before_the_next_is_computed():
    made = mixture(XLora())
    expected = generate(made, IDS, MASK, max_new_tokens=4, eos=())
    ran, got = shown(made), []
    for step, ids in enumerate(stream_tokens(made, IDS, MASK, max_new_tokens=4, eos=())):
        got.append(ids)
        assert len(ran) == step + 1
    assert [list(row) for row in zip(*got)] == expected


def test_rows_end_with_the_end_of_the_config_or_the_one_that_is_asked_for():
    made = mixture(XLora())
    free = generate(made, IDS, MASK, max_new_tokens=NEW, eos=())
    end = free[1][4]
    cut = [row[: row.index(end)] if end in row else row for row in free]
    assert generate(made, IDS, MASK, max_new_tokens=NEW, eos=[end, 299]) == cut
    made.config.eos_token_id = end
    assert generate(made, IDS, MASK, max_new_tokens=NEW) == cut


def test_a_row_is_done_with_the_token_that_completes_a_stop_string():
    tokenizer = text_tokenizer()
    made = mixture(XLora(), vocab_size=len(tokenizer))
    free = generate(made, IDS, MASK, max_new_tokens=NEW, eos=())
    word = tokenizer.decode(free[1][:3])[-2:]
    assert word.isascii()  # whole characters, which random bytes need not be
    stopped = generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), stop=[word], tokenizer=tokenizer)
    for row, full in zip(stopped, free):
        ends = [n for n in range(1, NEW + 1) if word in tokenizer.decode(full[:n])]
        assert row == full[: ends[0] if ends else NEW]
    assert len(stopped[1]) <= 3


@pytest.mark.parametrize("kind", ["xlora", "uniform", "input", "none"])
@pytest.mark.parametrize("place", ["growing", "fixed"])
def test_a_shared_prefix_changes_no_token_and_is_never_written_to(kind, place):
    model = llama() if kind == "none" else mixture(MIXERS[kind])
    ids = torch.tensor([[5, 9, 17, 3, 30]])
    prefix = run_prefix(model, ids)
    caches = [cache for cache in (prefix.bare, prefix.mixed) if cache is not None]
    before = [(layer.keys.clone(), layer.values.clone()) for cache in caches for layer in cache.layers]
    whole = torch.cat([ids.expand(2, -1), IDS], 1)
    mask = torch.cat([torch.ones(2, 5, dtype=torch.long), MASK], 1)
    expected, logits = anew(model, whole, mask)
    found = shown(model)
    fixed = FixedSteps(model, 2, 24) if place == "fixed" else None
    for _ in range(2):
        found.clear()
        assert generate(model, IDS, MASK, max_new_tokens=NEW, eos=(), prefix=prefix, fixed=fixed) == expected
        torch.testing.assert_close(torch.stack(found, 1), logits, **CLOSE)
    after = [(layer.keys, layer.values) for cache in caches for layer in cache.layers]
    assert all(torch.equal(a, b) for pair, kept in zip(after, before) for a, b in zip(pair, kept))


def test_mixtures_of_one_base_share_its_bare_pass():
    ids = torch.tensor([[5, 9, 17, 3, 30]])
    of_base = run_prefix(llama(), ids)
    for ranks in ((2, 3), (4, 1)):
        made = mixture(XLora(), ranks)
        ran = passes(made)
        prefix = run_prefix(made, ids, of_base)
        assert ran == ["mixed"]
        assert prefix.bare is of_base.bare
        found = generate(made, IDS, max_new_tokens=NEW, eos=(), prefix=prefix)
        whole = torch.cat([ids.expand(2, -1), IDS], 1)
        assert found == anew(made, whole, torch.ones_like(whole))[0]


def test_prefixes_that_do_not_fit_are_refused():
    ids, plain = torch.tensor([[5, 9]]), llama()
    made = mixture(XLora())
    of_base = run_prefix(plain, ids)
    with pytest.raises(InputError, match="was not run by this model"):
        generate(made, IDS, max_new_tokens=1, prefix=of_base)
    with pytest.raises(InputError, match="was not run by this model"):
        generate(plain, IDS, max_new_tokens=1, prefix=run_prefix(made, ids))
    with pytest.raises(InputError, match="other ids"):
        run_prefix(made, ids + 1, of_base)
    with pytest.raises(InputError, match="weighs a prompt as a whole"):
        run_prefix(mixture(XLora(per="sequence")), ids)


@torch.no_grad()
def held_by_hand(made: Mixture, after: int):
    """Greedy ids where the gate's weights of step `after` stay, each pass over the whole text without caches."""
    ids, weights = IDS[1:], None
    exact = []
    for step in range(NEW):
        if step <= after:
            weights = made.token_routing(input_ids=ids)
            exact.append(weights[:, -1:])
        per_token = torch.cat([made_prompt_weights(made), *exact[1:]], 1)
        missing = ids.shape[1] - per_token.shape[1]
        per_token = torch.cat([per_token, exact[-1].expand(-1, missing, -1, -1)], 1)
        parts = dict(enumerate(per_token.unbind(-2)))
        with made.context.use_weights(lambda layer, x, parts=parts: parts[layer.slot]):
            token = made.model(ids).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, token[:, None]], 1)
    return ids[:, 7:].tolist()


def made_prompt_weights(made: Mixture):
    return made.token_routing(input_ids=IDS[1:])


@pytest.mark.parametrize("place", ["growing", "fixed"])
@pytest.mark.parametrize("after", [0, 1, 3, 8])
def test_held_weights_are_those_of_the_last_token_that_was_asked_about(after, place):
    made = mixture(XLora(temperature=0.3))
    fixed = FixedSteps(made, 1, 20) if place == "fixed" else None
    for _ in range(2):
        found = generate(made, IDS[1:], max_new_tokens=NEW, eos=(), hold_after=after, fixed=fixed)
        assert found == held_by_hand(made, after)
    assert made.hold_after is None


@pytest.mark.parametrize("place", ["growing", "fixed"])
def test_held_weights_stay_and_spare_the_bare_pass(place):
    made = mixture(XLora())
    seen, ran = [], passes(made)
    layer = next(iter(made.layers.values()))
    layer.register_forward_hook(
        lambda module, args, out: made.context.weights and seen.append(made.context.weights(module, args[0])[:, -1])
    )
    fixed = FixedSteps(made, 2, 20) if place == "fixed" else None
    generate(made, IDS, MASK, max_new_tokens=6, eos=(), hold_after=2, fixed=fixed)
    assert ran == ["bare", "mixed"] * 3 + ["mixed"] * 3
    assert not torch.equal(seen[0], seen[2])
    assert all(torch.equal(weights, seen[2]) for weights in seen[3:])


@pytest.mark.parametrize("place", ["growing", "fixed"])
def test_holding_after_all_tokens_is_exact(place):
    made = mixture(XLora())
    fixed = FixedSteps(made, 2, 20) if place == "fixed" else None
    exact = generate(made, IDS, MASK, max_new_tokens=NEW, eos=())
    assert generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), hold_after=NEW, fixed=fixed) == exact


class Replayed(FixedSteps):
    """Graphs as a CPU can have them: what a replay does not run, Python's own state, is put back."""

    def capture_step(self):
        before = [tensor.clone() for tensor in self.state()]
        output = self.run_step()
        for tensor, kept in zip(self.state(), before):
            tensor.copy_(kept)  # capturing computes nothing
        steps, held = self, self.cache is not None and getattr(self.cache, "fixed_weights", None)

        class Graph:
            def replay(self):
                # a graph reads the addresses that it was captured with
                assert getattr(steps.cache, "fixed_weights", None) is held
                calls = steps.calls
                output.logits.copy_(steps.run_step().logits)
                steps.calls = calls

        return Graph(), output

    def state(self):
        caches = [tensor for cache in self.caches for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return [self.mask, self.positions, self.place, *caches]


@pytest.mark.parametrize("after", [None, 0, 1, 2, 3, 6, 20])
def test_replayed_steps_hold_weights_when_others_do(after):
    made = mixture(XLora(temperature=0.3))
    fixed = Replayed(made, 2, 20, capture=True)
    for _ in range(2):
        found = generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), hold_after=after, fixed=fixed)
        assert found == generate(made, IDS, MASK, max_new_tokens=NEW, eos=(), hold_after=after)
    assert any(graph is not None for graph in fixed.graphs.values())


def test_a_request_whose_steps_another_took_over_fails_loudly():
    made = mixture(XLora())
    fixed = FixedSteps(made, 2, 20)
    first = stream_tokens(made, IDS, MASK, max_new_tokens=5, eos=(), fixed=fixed)
    next(first), next(first)
    second = stream_tokens(made, IDS + 1, MASK, max_new_tokens=5, eos=(), fixed=fixed)
    next(second)
    with pytest.raises(RuntimeError, match="another request has taken over"):
        next(first)
    assert [next(second) for _ in range(2)] == list(stream_tokens(made, IDS + 1, MASK, max_new_tokens=3, eos=()))[1:]


def test_requests_find_the_addresses_of_the_first_and_their_own_weights():
    made = mixture(XLora(temperature=0.3))
    fixed, places, weights = FixedSteps(made, 2, 20), [], []
    for shift in (0, 5):
        generate(made, IDS + shift, MASK, max_new_tokens=3, eos=(), hold_after=0, fixed=fixed)
        layers = [layer for cache in fixed.caches for layer in cache.layers]
        tensors = [
            fixed.cache.fixed_weights,
            fixed.mask,
            fixed.positions,
            fixed.place,
            *(layer.keys for layer in layers),
        ]
        places.append([tensor.data_ptr() for tensor in tensors])
        weights.append(fixed.cache.fixed_weights.clone())
    assert places[0] == places[1]
    assert not torch.equal(*weights)


def test_steps_in_place_ask_no_mixer_whose_weights_are_constant():
    asked = []

    class Counted(Uniform):
        def routing_weights(self, gate, seen, sizes):
            asked.append(sizes.experts)
            return super().routing_weights(gate, seen, sizes)

    made = mixture(Counted())
    generate(made, IDS, MASK, max_new_tokens=5, eos=(), fixed=FixedSteps(made, 2, 20))
    assert asked == [2, 2]  # for the prompt, and once for all that is written


def test_steps_in_place_look_alike_to_a_compiler():
    made = mixture(XLora())
    fixed, calls = FixedSteps(made, 2, 20), []
    step = fixed.quick_step
    fixed.quick_step = lambda: calls.append(fixed.cache.calls) or step()
    generate(made, IDS, MASK, max_new_tokens=5, eos=(), fixed=fixed)
    assert calls == [0] * 4


@pytest.mark.parametrize(
    "changes, options, what",
    [
        ({}, {"attention_mask": torch.tensor([[1] * 7, [1] * 6 + [0]])}, "rows do not end with a token"),
        ({}, {"stop": ["a"]}, "strings to stop at need a tokenizer"),
        ({"mixer": OfInput()}, {"hold_after": 1}, "no weights of a whole pass to hold"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(changes, options, what):
    made = mixture(changes.get("mixer", XLora()))
    with pytest.raises(InputError, match=what):
        stream_tokens(made, IDS, max_new_tokens=1, **options)


def test_steps_in_place_refuse_what_they_would_get_wrong():
    made = mixture(XLora())
    fixed = FixedSteps(made, 2, 12)
    with pytest.raises(InputError, match="does not fit the steps"):
        stream_tokens(made, IDS, max_new_tokens=6, fixed=fixed)
    with pytest.raises(InputError, match="does not fit the steps"):
        stream_tokens(made, IDS[:1], max_new_tokens=2, fixed=fixed)
    with pytest.raises(InputError, match="those of another model"):
        stream_tokens(llama(), IDS, max_new_tokens=2, fixed=fixed)
    sliding = llama()
    sliding.config.sliding_window = 4
    with pytest.raises(InputError, match="not full attention"):
        FixedSteps(sliding, 2, 12)
