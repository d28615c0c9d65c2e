"""Mixtures on bases of every family, held against dense formulas: Conv1D, fused projections, heads, two streams."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import peft
import pytest
import soundfile
import torch
from families import FAMILIES, gpt2, phi3
from models import encoder_base, opinionated, save, text_tokenizer, trained_adapter, whisper_base
from torch import nn

from loratory import registry
from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.bases.core import load_base
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.mixers.contract import Mixer
from loratory.mixers.core import Mixture
from loratory.mixers.methods.xlora import Mixer as XLora
from loratory.mixers.store import open_mixture, save_mixture
from loratory.mixers.streams import READS_FRAMES

CLOSE = {"rtol": 0, "atol": 1e-5}
SOME = {  # what the second and the third expert change; the first changes all
    "gpt2": (("c_attn",), ("c_proj",)),
    "phi3": (("qkv_proj",), ("gate_up_proj", "o_proj")),
    "bert": (("query", "value"), ("key", "intermediate.dense")),
    "whisper": (("q_proj", "v_proj"), ("k_proj", "fc1")),
}
BERT_INNER = tuple(f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2))
FAMILY = pytest.mark.parametrize("family", SOME)


class Fixed(Mixer):
    """Weights given by the test."""

    reads: ClassVar[str] = "nothing"
    values: list[float]

    def routing_weights(self, gate, seen, sizes):
        return torch.tensor(self.values).view(1, 1, 1, -1)


class Local(Mixer):
    """Every layer weighs by its own input."""

    reads: ClassVar[str] = "input"

    def build_gate(self, sizes):
        return nn.ModuleList(nn.Linear(width, sizes.experts) for width in sizes.widths)

    def routing_weights(self, gate, seen, sizes):
        return gate[seen.layer](seen.input.float()).softmax(-1)


GATED = {"token": XLora(), "sequence": XLora(per="sequence"), "deep": XLora(depth=2, width=8), "input": Local()}
GATES = pytest.mark.parametrize("mixer", GATED.values(), ids=GATED)


def targets(family: str, place: int) -> tuple[str, ...]:
    names = SOME[family][place]
    return tuple(name for name in names if name != "intermediate.dense") + BERT_INNER * ("intermediate.dense" in names)


def experts(family: str, model=None, heads=None) -> dict:
    """Three experts of unequal ranks, scales and targets, each with a head of its own where the family has one."""
    toy = FAMILIES[family]()
    model, heads = (toy.model, toy.heads) if model is None else (model, heads)
    return {
        "a": trained_adapter(model, Method(rank=2, alpha=3.0), 1, heads),
        "b": trained_adapter(model, Method(rank=4, alpha=4.0, target_modules=targets(family, 0)), 2, heads),
        "c": trained_adapter(model, Method(rank=3, alpha=1.0, target_modules=targets(family, 1)), 3, heads),
    }


def placed(mixture: Mixture) -> Mixture:
    mixture.domain = 1
    return opinionated(mixture).eval()


def mixed(family: str, mixer) -> tuple[Mixture, SimpleNamespace]:
    toy = FAMILIES[family]()
    return placed(Mixture(toy.model, experts(family), mixer)), toy


def said(toy, model) -> torch.Tensor:
    return toy.logits(model, toy.collate(toy.items[:3]))


def put_head(model, adapter) -> None:
    for name, tensor in adapter.heads.items():
        model.get_parameter(name).data.copy_(tensor)


@torch.no_grad()
def by_hand(model, given: dict, weigh, call):
    """What `call` returns with ΔW of all experts added to the layers as dense products, λ = weigh(layer, input)."""

    def hook(name):
        change = [adapter.deltas[name].to_dense() if name in adapter.deltas else None for adapter in given.values()]

        def add(module, inputs, output):
            shares = weigh(name, inputs[0])
            found = [shares[..., i, None] * (inputs[0] @ d.T) for i, d in enumerate(change) if d is not None]
            return output + sum(found)

        return model.get_submodule(name).register_forward_hook(add)

    handles = [hook(name) for name in sorted({name for adapter in given.values() for name in adapter.deltas})]
    try:
        return call()
    finally:
        for handle in handles:
            handle.remove()


def whisper_weights(model, mixture: Mixture, features, ids):
    """(layer, input) -> λ of X-LoRA or `Local`, from the bare model and the gate's tensors alone."""
    gate = mixture.gate
    if isinstance(mixture.mixer, Local):
        return lambda name, x: gate["tokens"][list(mixture.layers).index(name)](x).softmax(-1)
    frames = model.model.encoder(features).last_hidden_state
    tokens = model.model.decoder(input_ids=ids, encoder_hidden_states=frames).last_hidden_state
    heard = [name for name in mixture.layers if READS_FRAMES.search(name)]
    parts = {"frames": heard, "tokens": [name for name in mixture.layers if name not in heard]}
    if mixture.mixer.per_sequence:
        heard = [(row > row.min()).any(0).nonzero().max().item() // 2 + 1 for row in features]  # silence follows
        tokens = torch.stack([row[:last].mean(0, keepdim=True) for row, last in zip(frames, heard)])
        parts = {"tokens": list(mixture.layers)}
    found = {}
    for stream, names in parts.items():
        if not names:
            continue
        logits = gate[stream](frames if stream == "frames" else tokens)
        found |= zip(names, logits.view(*logits.shape[:2], len(names), 3).softmax(-1).unbind(2))
    return lambda name, x: found[name]


@FAMILY
@torch.no_grad()
@pytest.mark.parametrize("index", range(3))
def test_one_hot_weights_are_that_expert_alone_with_its_head(family, index):
    mixture, toy = mixed(family, Fixed(values=[float(i == index) for i in range(3)]))
    mixture.domain = index
    alone = FAMILIES[family]()
    core.apply(alone.model, experts(family)["abc"[index]], "alone")
    torch.testing.assert_close(said(toy, mixture), said(alone, alone.model), **CLOSE)


@FAMILY
@torch.no_grad()
def test_zero_weights_are_the_base_with_the_head_of_the_asked_domain(family):
    mixture, toy = mixed(family, Fixed(values=[0.0, 0.0, 0.0]))
    bare, seen = FAMILIES[family](), []
    for index, adapter in enumerate(experts(family).values()):
        mixture.domain = index
        put_head(bare.model, adapter)
        seen.append(said(toy, mixture))
        assert torch.equal(seen[-1], said(bare, bare.model))
    assert torch.equal(seen[0], seen[1]) == (family != "bert")  # heads differ
    mixture.domain = None
    bare = FAMILIES[family]()
    assert torch.equal(said(toy, mixture), said(bare, bare.model))


@FAMILY
@torch.no_grad()
def test_constant_weights_are_the_merged_weight(family):
    values, merged = [0.2, 0.5, -0.3], FAMILIES[family]()
    for value, adapter in zip(values, experts(family).values()):
        for name, delta in adapter.deltas.items():
            layer = merged.model.get_submodule(name)
            layer.weight.data += value * (delta.to_dense().T if family == "gpt2" else delta.to_dense())
    put_head(merged.model, experts(family)["b"])
    mixture, toy = mixed(family, Fixed(values=values))
    torch.testing.assert_close(said(toy, mixture), said(merged, merged.model), **CLOSE)


@GATES
@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_a_causal_row_does_not_depend_on_its_batch_or_padding(family, mixer):
    mixture, toy = mixed(family, mixer)
    ids = toy.collate(toy.items[:2])["ids"]
    alone = mixture(input_ids=ids[:1, :4]).logits
    for pads in ((0, 2), (2, 0)):
        first = torch.nn.functional.pad(ids[:1, :4], pads)
        mask = torch.cat([torch.nn.functional.pad(torch.ones_like(ids[:1, :4]), pads), torch.ones_like(ids[1:])])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        both = mixture(input_ids=torch.cat([first, ids[1:]]), attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(both[:1, pads[0] : pads[0] + 4], alone, **CLOSE)


@GATES
@torch.no_grad()
def test_an_encoders_answer_does_not_depend_on_its_batch_or_padding(mixer):
    mixture, toy = mixed("bert", mixer)
    ids = toy.collate(toy.items[:2])["ids"]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    both = mixture(input_ids=ids * mask, attention_mask=mask).logits
    torch.testing.assert_close(both[:1], mixture(input_ids=ids[:1, :4]).logits, **CLOSE)
    assert not torch.allclose(both[:1], mixture(input_ids=ids[:1]).logits, **CLOSE)  # what the mask hides would count


@GATES
@torch.no_grad()
def test_both_streams_of_whisper_are_the_dense_formula(mixer):
    mixture, toy = mixed("whisper", mixer)
    bare = FAMILIES["whisper"]().model
    ids, sound = toy.collate(toy.items[:3])["ids"], torch.randn(3, 80, 200, generator=torch.Generator().manual_seed(3))
    weigh = whisper_weights(bare, mixture, sound, ids)
    expected = by_hand(bare, experts("whisper"), weigh, lambda: bare(sound, decoder_input_ids=ids).logits)
    found = mixture(input_features=sound, decoder_input_ids=ids).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    padded = mixture(input_features=sound, decoder_input_ids=torch.cat([ids, ids[:, :2]], 1)).logits
    torch.testing.assert_close(padded[:, :6], expected, **CLOSE)
    torch.testing.assert_close(
        mixture(input_features=sound[1:2], decoder_input_ids=ids[1:2]).logits, expected[1:2], **CLOSE
    )


@torch.no_grad()
def test_an_encoders_gate_is_the_dense_formula():
    mixture, toy = mixed("bert", XLora())
    bare, given = FAMILIES["bert"]().model, experts("bert")
    put_head(bare, given["b"])
    ids = toy.collate(toy.items[:3])["ids"]
    logits = mixture.gate["tokens"](bare.bert(ids).last_hidden_state)
    shares = dict(zip(mixture.layers, logits.view(3, 6, len(mixture.layers), 3).softmax(-1).unbind(2)))
    expected = by_hand(bare, given, lambda name, x: shares[name], lambda: bare(ids).logits)
    torch.testing.assert_close(said(toy, mixture), expected, **CLOSE)


def opened(family: str, folder):
    """A prepared base folder, opened."""
    if family == "whisper":
        return whisper_base(folder)
    if family == "bert":
        return encoder_base(folder)
    return save(folder, "causal", {"gpt2": gpt2, "phi3": phi3}[family](), text_tokenizer())


@FAMILY
@pytest.mark.parametrize("options", [{"depth": 2, "width": 8}, {"per": "sequence"}, {"train_experts": True}], ids=str)
def test_a_saved_mixture_opens_with_equal_logits_and_unwraps_to_the_base(family, options, tmp_path):
    base, toy = opened(family, tmp_path / "base"), FAMILIES[family]()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    folders = {}
    for name, adapter in experts(family, opened(family, tmp_path / "other").model, base.heads).items():
        adapter.run["base_sha256"] = base.fingerprint
        folders[name] = tmp_path / name
        deltas.save_adapter(folders[name], adapter, causal=base.family == "causal", transposed=family == "gpt2")
    given = {name: deltas.load_adapter(folder) for name, folder in folders.items()}
    mixture = placed(Mixture(base.model, given, XLora(**options)))
    if options.get("train_experts"):
        said(toy, mixture.train()).square().mean().backward()
        torch.optim.SGD(mixture.trainable_parameters().values(), lr=0.5).step()
    mixture.checkpoint_gradients()
    run = {"base": "tiny", "base_sha256": base.fingerprint}
    with torch.no_grad():
        expected = [said(toy, mixture.eval())]
        mixture.domain = 2
        expected.append(said(toy, mixture))
    save_mixture(tmp_path / "mixture", mixture.train(), "xlora", folders, run)
    mixture.remove_experts()
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in base.model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.model.modules())
    again = open_mixture(tmp_path / "mixture", load_base(base.folder))
    for domain, logits in zip((1, 2), expected):
        again.domain = domain
        with torch.no_grad():
            assert torch.equal(said(toy, again), logits)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "whisper"])
def test_experts_that_moved_are_folders_that_peft_reads(family, tmp_path):
    mixture, toy = mixed(family, XLora(train_experts=True))
    for parameter in mixture.trainable_parameters().values():
        parameter.add_(0.01)
    save_mixture(tmp_path / "mixture", mixture, "xlora", {}, {"base_sha256": "0"})
    theirs = peft.PeftModel.from_pretrained(FAMILIES[family]().model, tmp_path / "mixture/experts/b").eval()
    mixture.mixer = Fixed(values=[0.0, 1.0, 0.0])
    torch.testing.assert_close(said(toy, mixture), said(toy, theirs), **CLOSE)


def altered(family: str, change) -> dict:
    found = experts(family)
    change(found["c"].heads)
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, r"here:c: the expert's own head is not that of a \(none\); expected bert.pooler"),
        (lambda heads: heads.pop("classifier.bias"), r"here:c: the expert's own head is not that of a"),
        (
            lambda heads: heads.update({"classifier.bias": torch.zeros(3)}),
            r"here:c:classifier.bias: wrong size \(\(3,",
        ),
    ],
    ids=["without", "other", "size"],
)
def test_an_expert_whose_head_is_not_that_of_the_others_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        Mixture(FAMILIES["bert"]().model, altered("bert", change), XLora(), "here")


def test_heads_that_the_base_lacks_are_refused_by_name():
    found = experts("gpt2")
    for adapter in found.values():
        adapter.heads["score.weight"] = torch.zeros(2, 32)
    with pytest.raises(InputError, match=r"here:a: unknown weight of this base \(score\.weight\)"):
        Mixture(FAMILIES["gpt2"]().model, found, XLora(), "here")


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A Whisper base and three clips of unequal length, as it reads them."""
    folder = tmp_path_factory.mktemp("heard")
    base, items = whisper_base(folder / "base"), []
    for i, text in enumerate(("yes no", "the user like it", "speech to text")):
        tone = np.sin(np.arange(int(16000 * (0.5 + 0.4 * i))) * (0.03 + 0.05 * i)) * 0.4
        soundfile.write(folder / f"{i}.flac", tone, 16000)
        items.append(base.encode(Example(f"r{i}", "g", "", text, audio=str(folder / f"{i}.flac"))))
    return base, items


def rewritten(base, call, features, limit: int) -> tuple[list[str], list[torch.Tensor]]:
    """Greedy transcripts and the logits of each step, everything computed anew for each token; call: ids -> logits."""
    ids, logits = torch.tensor([base.decoder_prompt()] * len(features)), []
    for _ in range(limit):
        logits.append(call(ids)[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    end, rows = base.tokenizer.eos_token_id, []
    for row in ids[:, len(base.decoder_prompt()) :].tolist():
        row = row[: row.index(end)] if end in row else row
        rows.append(base.tokenizer.decode(row, skip_special_tokens=True).strip())
    return rows, logits


def check_transcripts(base, mixture: Mixture, items, call, limit: int) -> list[str]:
    """Checks what is written, and the logits of every step while any row is open; returns the transcripts."""
    steps = []
    handle = mixture.register_forward_hook(lambda module, inputs, output: steps.append(output.logits[:, -1]))
    found = base.text(mixture, items, limit)
    handle.remove()
    expected, logits = rewritten(base, call, base.collate(items)["features"], limit)
    assert found == expected and len(steps) > 3
    for step, reference in zip(steps, logits):
        torch.testing.assert_close(step, reference, **CLOSE)
    return found


@torch.no_grad()
@pytest.mark.parametrize("mixer", [*GATED.values(), Fixed(values=[0.3, 0.4, 0.5])], ids=[*GATED, "fixed"])
def test_transcripts_are_those_of_the_dense_formula_without_any_cache(heard, mixer):
    base, items = heard
    bare, model = load_base(base.folder).model, load_base(base.folder).model
    given = experts("whisper", load_base(base.folder).model, ())
    mixture = placed(Mixture(model, given, mixer))
    features = base.collate(items)["features"]

    def call(ids):
        if isinstance(mixer, Fixed):
            weigh = lambda name, x: torch.tensor(mixer.values)  # noqa: E731
        else:
            weigh = whisper_weights(bare, mixture, features, ids)
        return by_hand(bare, given, weigh, lambda: bare(features, decoder_input_ids=ids).logits)

    found = check_transcripts(base, mixture, items, call, 10)
    assert found != base.text(bare, items, 10) and all(found)
    assert found == [base.text(mixture, [item], 10)[0] for item in items]


@pytest.mark.parametrize("mixer", GATED.values(), ids=GATED)
def test_the_loss_of_transcripts_trains_the_gates_of_both_streams(heard, mixer):
    base, items = heard
    model = load_base(base.folder).model
    mixture = placed(Mixture(model, experts("whisper", load_base(base.folder).model, ()), mixer)).train()
    total, targets = base.loss(mixture, base.collate(items))
    total.backward()
    assert targets == sum(len(item.ids) - len(base.decoder_prompt()) for item in items)
    assert set(mixture.gate) == ({"frames", "tokens"} if mixer in (XLora(), GATED["deep"]) else {"tokens"})
    assert all(parameter.grad.abs().sum() > 0 for parameter in mixture.gate.parameters())
    if isinstance(mixer, XLora):
        for stream, names in mixture.streams.items():
            last = [module for module in mixture.gate[stream] if isinstance(module, nn.Linear)][-1]
            assert (last.weight.grad.view(len(names), 3, -1).abs().sum((1, 2)) > 0).all()  # every layer is reached


@torch.no_grad()
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_experts_of_whispers_encoder_or_decoder_alone_can_be_mixed(heard, part):
    base, items = heard
    given = experts("whisper", load_base(base.folder).model, ())
    for adapter in given.values():
        for name in [name for name in adapter.deltas if part not in name.split(".")]:
            del adapter.deltas[name]
    bare = load_base(base.folder).model
    mixture = placed(Mixture(load_base(base.folder).model, given, XLora()))
    assert set(mixture.streams) == ({"frames"} if part == "encoder" else {"frames", "tokens"})
    features = base.collate(items)["features"]

    def call(ids):
        weigh = whisper_weights(bare, mixture, features, ids)
        return by_hand(bare, given, weigh, lambda: bare(features, decoder_input_ids=ids).logits)

    check_transcripts(base, mixture, items, call, 8)


@torch.no_grad()
@FAMILY
@GATES
def test_routes_are_the_weights_of_every_position_and_layer(family, mixer):
    mixture, toy = mixed(family, mixer)
    ids = toy.collate(toy.items[:3])["ids"]
    inputs = {"input_ids": ids}
    if family == "whisper":
        inputs = {"input_features": torch.randn(3, 80, 200), "decoder_input_ids": ids}
    routes = mixture.stream_routing(**inputs)
    heard = [name for name in mixture.layers if family == "whisper" and READS_FRAMES.search(name)]
    read = len(mixture.layers) - len(heard)
    expected = {"tokens": (3, 6, read, 3)} | ({"frames": (3, 100, len(heard), 3)} if heard else {})
    if mixer.per_sequence:
        expected = {"tokens": (3, 1, len(mixture.layers), 3)}
    assert {stream: tuple(weights.shape) for stream, weights in routes.items()} == expected
    for weights in routes.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    mixture(**inputs)
    if mixer.reads == "hidden":
        assert all(torch.equal(routes[stream], mixture.applied[stream]) for stream in routes)
    else:
        order = [name for name in mixture.layers if name not in heard]
        walked = [name for name in mixture.applied if name not in heard]
        assert sorted(walked) == sorted(order)
        for place, name in enumerate(order):
            assert torch.equal(routes["tokens"][:, :, place], mixture.applied[name])


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "whisper"])
@pytest.mark.parametrize("kind", registry.registered_names("mixer"))
def test_a_row_of_every_mixer_does_not_depend_on_its_batch_or_padding(kind, family):
    mixer, given = registry.load_module("mixer", kind).Mixer(), experts(family)
    if family == "bert" and type(mixer).prepare_experts is not Mixer.prepare_experts:
        with pytest.raises(InputError, match=r"bert\.pooler\.dense\.weight"):  # there is no head for what is made
            mixer.prepare_experts(given, seed=4)
        return
    mixture = placed(
        Mixture(FAMILIES[family]().model, mixer.prepare_experts(given, seed=4), mixer, domains=list("abc"))
    )
    generator = torch.Generator().manual_seed(2)
    ids, sound = torch.randint(3, 60, (2, 6), generator=generator), torch.randn(2, 80, 200, generator=generator)
    if family == "bert":
        mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
        alone = mixture(input_ids=ids[:1, :4]).logits
        both = mixture(input_ids=ids * mask, attention_mask=mask).logits[:1]
    else:
        alone = mixture(input_features=sound[:1], decoder_input_ids=ids[:1, :4]).logits
        both = mixture(input_features=sound, decoder_input_ids=ids).logits[:1, :4]
    torch.testing.assert_close(both, alone, **CLOSE)
