"""Training mixtures: checkpointed gradients, half precision, what moves and what must not, whole trainings resumed."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from families import FAMILIES, VOCABULARY, Toy, begin
from models import bert, encoder_base, llama, opinionated, trained_adapter, whisper_base, whisper_config
from studies import as_records
from torch import nn
from transformers import WhisperForConditionalGeneration

from loratory import registry
from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.bases.core import load_base
from loratory.config import mixture_entry as entry
from loratory.data.files import file_sha256, read_json
from loratory.domains.dataset import record_schema, write_records
from loratory.mixers.contract import Mixer
from loratory.mixers.core import Mixture
from loratory.mixers.methods.xlora import Mixer as XLora
from loratory.mixers.store import open_mixture, save_mixture
from loratory.training import mixture as training
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.mixture import mixer_penalty
from loratory.training.schedule import Training

EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(autouse=True)
def any_precision():
    """A process keeps the first precision that it trains in, unless it is told to forget."""
    yield
    AcceleratorState._reset_state()


class Local(Mixer):
    """Every layer weighs by its own input, with dropout in its gate; later layers also hear what the first decided."""

    reads: ClassVar[str] = "input"
    hears: bool = False

    def build_gate(self, sizes):
        return nn.ModuleList(nn.Sequential(nn.Linear(w, sizes.experts), nn.Dropout(0.2)) for w in sizes.widths)

    def routing_weights(self, gate, seen, sizes):
        logits = gate[seen.layer](seen.input.float())
        if self.hears:
            logits = logits + seen.pass_state.get("first", 0)
            seen.pass_state.setdefault("first", logits)
        return logits.softmax(-1)

    def routing_penalty(self, weights, domain):
        return -weights[..., domain].log().mean()


class Fixed(Mixer):
    """The first expert alone, and all of them move."""

    reads: ClassVar[str] = "nothing"

    @property
    def trains_experts(self):
        return True

    def routing_weights(self, gate, seen, sizes):
        return torch.eye(sizes.experts)[0].view(1, 1, 1, -1)


GATED = {"linear": XLora(), "deep": XLora(depth=2, width=8, domain_loss=0.3), "sequence": XLora(per="sequence")}
GATED |= {"input": Local()}
MODELS = {"llama": llama, "bert": bert, "whisper": lambda v: WhisperForConditionalGeneration(whisper_config(v))}
FAMILY = pytest.mark.parametrize("family", MODELS)


def toy_of(family: str, dropout: float = 0.0, dtype=torch.float32):
    """A tiny base; `dropout` is what its config asks for in training."""
    toy = FAMILIES[family]()
    state = toy.model.state_dict()
    toy.model = MODELS[family](VOCABULARY)
    toy.model.load_state_dict(state)
    toy.model.to(dtype).eval().requires_grad_(False)
    for module in toy.model.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, dropout)
    if family == "whisper":  # the toy's sound is in single precision
        toy.model.model.encoder.register_forward_pre_hook(lambda _, args: (args[0].to(dtype), *args[1:]))
    return toy


def experts(family: str) -> dict:
    toy = FAMILIES[family]()
    made = (trained_adapter(toy.model, Method(rank=2 + i, alpha=3.0), i, toy.heads) for i in range(2))
    return dict(zip("ab", made))


def mixed(toy: Toy, family: str, mixer) -> Mixture:
    mixture = Mixture(toy.model, experts(family), mixer)
    mixture.domain = 1
    return opinionated(mixture, 10).train()


def toy_loss(toy: Toy, model) -> torch.Tensor:
    return toy.loss(model, toy.collate(toy.items[:4]))[0]


def loss_of(toy: Toy, mixture: Mixture) -> torch.Tensor:
    batch = toy.collate(toy.items[:4])
    total, targets = toy.loss(mixture, batch)
    return total / targets + mixer_penalty(mixture, batch["mask"].bool(), 1)


def gradients(toy: Toy, mixture: Mixture) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)  # of the gate's dropout
    loss_of(toy, mixture).backward()
    return {name: parameter.grad for name, parameter in mixture.trainable_parameters().items()}


def counted(model) -> list[str]:
    """Names of mixed layers, once for each time that one is called from now on."""
    calls = []
    for name, module in model.named_modules():
        if name.endswith(".base"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@FAMILY
@pytest.mark.parametrize("mixer", [*GATED.values(), XLora(train_experts=True)], ids=[*GATED, "moving"])
def test_checkpointed_gradients_are_those_without(family, mixer):
    plain, again = toy_of(family), toy_of(family)
    expected = gradients(plain, mixed(plain, family, mixer))
    mixture = mixed(again, family, mixer)
    mixture.checkpoint_gradients()
    calls = counted(again.model)
    found = gradients(again, mixture)
    passes = 3 if mixer.reads == "hidden" else 2  # the bare pass is not repeated
    assert {calls.count(name) for name in calls} == {passes} and len(set(calls)) == len(mixture.layers)
    assert found.keys() == expected.keys() and all(grad.abs().sum() > 0 for grad in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **EXACT)


def test_a_repeated_block_hears_what_earlier_blocks_said_and_not_what_it_said_itself():
    plain, again = toy_of("llama"), toy_of("llama")
    expected = gradients(plain, mixed(plain, "llama", Local(hears=True)))
    deaf = toy_of("llama")
    alone = gradients(deaf, mixed(deaf, "llama", Local()))
    assert not torch.allclose(expected["gate.tokens.0.0.weight"], alone["gate.tokens.0.0.weight"])
    mixture = mixed(again, "llama", Local(hears=True))
    mixture.checkpoint_gradients()
    found = gradients(again, mixture)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **EXACT)


def test_a_repeated_pass_keeps_nothing_that_it_computed_anew():
    toy = toy_of("llama")
    mixture = mixed(toy, "llama", Local())
    mixture.checkpoint_gradients()
    loss = loss_of(toy, mixture)
    before = dict(mixture.routing_weights)
    loss.backward()
    assert len(before) == len(mixture.layers) and all(mixture.routing_weights[name] is before[name] for name in before)


@FAMILY
@pytest.mark.parametrize("checkpoints", [False, True])
def test_dropout_of_the_base_stays_off_while_the_gate_trains(family, checkpoints):
    calm, wild = toy_of(family), toy_of(family, dropout=0.5)
    mixer = XLora(dropout=0.0)
    expected = gradients(calm, mixed(calm, family, mixer))
    mixture = mixed(wild, family, mixer)
    if checkpoints:
        mixture.checkpoint_gradients()
    found = gradients(wild, mixture)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **EXACT)
    mixture.remove_experts()
    assert not torch.equal(toy_loss(wild, wild.model.train()), toy_loss(wild, wild.model))  # it would be on otherwise


@FAMILY
def test_a_checkpointed_mixture_writes_with_its_cache_once_it_is_evaluated(family):
    toy = toy_of(family)
    mixture = mixed(toy, family, XLora())
    with torch.no_grad():
        expected = toy.logits(mixture.eval(), toy.collate(toy.items[:2]))
    mixture.train().checkpoint_gradients()
    calls = counted(toy.model)
    with torch.no_grad():
        assert torch.equal(toy.logits(mixture.eval(), toy.collate(toy.items[:2])), expected)
        if family == "llama":
            ids, cache = toy.collate(toy.items[:2])["ids"], mixture.new_cache()
            mixture(input_ids=ids[:, :4], past_key_values=cache, use_cache=True)
            last = mixture(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True).logits[:, -1]
            torch.testing.assert_close(last, expected[:, -1], rtol=0, atol=1e-5)
    assert calls


def frozen(mixture: Mixture) -> dict[str, torch.Tensor]:
    moving = mixture.trainable_parameters()
    return {name: tensor.clone() for name, tensor in mixture.state_dict().items() if name not in moving}


def steps(toy: Toy, mixture: Mixture, precision: str, folder) -> list[dict]:
    """Three steps of the training's own loop with weight decay."""
    recipe = Training(steps=3, learning_rate=0.05, weight_decay=0.1, precision=precision)

    def loss(micro):
        total, targets = toy.loss(mixture, micro.batch)
        return Loss(total + targets * mixer_penalty(mixture, micro.batch["mask"].bool(), 1), targets)

    batch = toy.collate(toy.items[:4])
    return train_model(
        mixture.trainable_parameters(), lambda step: [MicroBatch("b", batch)], loss, recipe, 0, folder, "toy"
    )


@FAMILY
@pytest.mark.parametrize("mixer", GATED.values(), ids=GATED)
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "fp32"), (torch.bfloat16, "fp32"), (torch.float32, "bf16")], ids=str
)
def test_the_gate_alone_moves_in_single_precision_whatever_the_bases(family, mixer, dtype, precision, tmp_path):
    toy = toy_of(family, dtype=dtype)
    mixture = mixed(toy, family, mixer)
    before, start = frozen(mixture), {n: p.detach().clone() for n, p in mixture.trainable_parameters().items()}
    assert {name.partition(".")[0] for name in start} == {"gate"}
    curve = steps(toy, mixture, precision, tmp_path)
    after = mixture.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for name, parameter in mixture.trainable_parameters().items():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()
        assert not torch.equal(parameter, start[name])
    assert np.isfinite([point["loss"] for point in curve]).all()
    assert mixture.model.dtype == dtype


class Watched(XLora):
    """X-LoRA that notes in which precision its gate answers."""

    answers: ClassVar[list] = []

    def routing_weights(self, gate, seen, sizes):
        self.answers.append(gate(seen.hidden.float()).dtype)
        return super().routing_weights(gate, seen, sizes)


@FAMILY
def test_a_gate_computes_in_single_precision_under_autocast(family):
    toy = toy_of(family)
    mixture = mixed(toy, family, Watched())
    Watched.answers.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert toy.logits(mixture, toy.collate(toy.items[:2])).dtype == torch.bfloat16
    assert set(Watched.answers) == {torch.float32}


@FAMILY
def test_half_precision_gives_nearly_the_gradients_of_single_precision(family):
    single, half = toy_of(family), toy_of(family, dtype=torch.bfloat16)
    expected = gradients(single, mixed(single, family, XLora()))
    for toy, autocast in ((half, False), (toy_of(family), True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = gradients(toy, mixed(toy, family, XLora()))
        for name in expected:
            cosine = torch.cosine_similarity(found[name].flatten(), expected[name].flatten(), 0)
            assert found[name].dtype == torch.float32 and cosine > 0.98, (name, autocast, cosine)


@FAMILY
def test_experts_that_move_are_saved_and_come_back_exactly(family, tmp_path):
    toy = toy_of(family)
    mixture = mixed(toy, family, XLora(train_experts=True))
    before, given = frozen(mixture), experts(family)
    steps(toy, mixture, "fp32", tmp_path / "steps")
    after = mixture.eval().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    moved = mixture.current_experts()
    for name, adapter in moved.items():
        for module, delta in adapter.deltas.items():
            assert not torch.equal(delta.A, given[name].deltas[module].A)
            assert not torch.equal(delta.B, given[name].deltas[module].B)
    with torch.no_grad():
        expected = toy.logits(mixture, toy.collate(toy.items[:4]))
    save_mixture(tmp_path / "mixture", mixture, "xlora", {}, {"base_sha256": "0"})
    again = toy_of(family)
    opened = open_mixture(tmp_path / "mixture", SimpleNamespace(model=again.model, fingerprint="0"))
    opened.domain = 1
    for name, adapter in opened.experts.items():
        assert {m: d.scale for m, d in adapter.deltas.items()} == {m: d.scale for m, d in moved[name].deltas.items()}
        assert all(torch.equal(d.B, moved[name].deltas[m].B) for m, d in adapter.deltas.items())
    with torch.no_grad():
        assert torch.equal(again.logits(opened, again.collate(again.items[:4])), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "whisper"])
def test_an_expert_that_moves_alone_moves_as_lora_does(family):
    plain, method = FAMILIES[family](), Method(rank=3, alpha=2.0)
    start = trained_adapter(FAMILIES[family]().model, method, 1)
    session = begin(plain, method)
    for name, layer in session.layers.items():
        layer.adapter["A"].data.copy_(start.deltas[name].A)
        layer.adapter["B"].data.copy_(start.deltas[name].B)
    toy = FAMILIES[family]()
    mixture = Mixture(toy.model, {"a": start, **{"b": trained_adapter(FAMILIES[family]().model, method, 2)}}, Fixed())
    for model, parameters in (
        (plain.model, core.trainable_parameters(plain.model).values()),
        (mixture.train(), mixture.trainable_parameters().values()),
    ):
        optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
        for step in range(4):
            total, targets = toy.loss(model, toy.collate(toy.items[2 * step : 2 * step + 4]))
            (total / targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    expected = core.export(plain.model, (), {}).deltas
    for name, delta in mixture.current_experts()["a"].deltas.items():
        assert delta.scale == expected[name].scale
        torch.testing.assert_close(delta.A, expected[name].A, rtol=0, atol=1e-5)
        torch.testing.assert_close(delta.B, expected[name].B, rtol=0, atol=1e-5)
        assert (delta.B - start.deltas[name].B).abs().max() > 1e-3


# --- whole trainings, from dataset files to a mixture folder ---------------------------------------------------------


def rna(folder, seed: int):
    """Datasets of short transcripts of the four codons that the tiny encoder knows, two for each class."""
    draw, codons = np.random.default_rng(seed), (["ACG", "TTA"], ["GCA", "CGT"])
    build = registry.load_module("domain", "lncrna", "build")
    for split in ("train", "gate", "valid"):
        letters = ["".join(draw.choice(codons[i % 2], int(draw.integers(3, 10)))) for i in range(10)]
        rows = [
            {"id": f"{split}{i}", "group": f"g{i}", "sequence": s, "length": len(s), "label": i % 2, "gene": ""}
            for i, s in enumerate(letters)
        ]
        write_records(folder / f"{split}.parquet", build, as_records(rows, record_schema(build)))


def speech(folder, seed: int):
    """Datasets of short tones with transcripts."""
    draw = np.random.default_rng(seed)
    build, facts = (
        registry.load_module("domain", "speech", "build"),
        {
            "speaker": "s",
            "age": 7,
            "gender": "",
            "sha256": "",
            "start": 0.0,
            "end": -1.0,
            "flaws": "",
            "read_in_train": False,
        },
    )
    for split in ("train", "gate", "valid"):
        rows = []
        for i, text in enumerate(("yes no", "the user", "like it", "to text")):
            samples = draw.normal(0, 0.1, 6000 + 2000 * i).astype(np.float32)
            soundfile.write(folder / f"{split}{i}.flac", samples, 16000)
            clip = str(folder / f"{split}{i}.flac")
            row = {
                "id": f"{split}{i}",
                "group": f"g{i}",
                "audio": clip,
                "audio_sha256": file_sha256(clip),
                "text": text,
            }
            rows.append(row | facts | {"seconds": len(samples) / 16000})
        write_records(folder / f"{split}.parquet", build, as_records(rows, record_schema(build)))


STUDIES = {"encoder": (encoder_base, "lncrna", rna), "whisper": (whisper_base, "speech", speech)}


@pytest.fixture(params=STUDIES)
def study(request, tmp_path, monkeypatch):
    """A base, adapters and datasets of two fields of one domain: no two domains share an encoder or a Whisper yet."""
    make, domain, write = STUDIES[request.param]
    base, other = make(tmp_path / "base"), make(tmp_path / "other")
    task, folders, data = registry.load_module("domain", domain, "sources").Task(), {}, {}
    for seed, field in enumerate(("adults", "children")):
        adapter = trained_adapter(other.model, Method(rank=2 + seed), seed, base.heads)
        adapter.run["base_sha256"] = base.fingerprint
        folders[field], data[field] = str(tmp_path / field), tmp_path / f"{field}.data"
        deltas.save_adapter(f"{folders[field]}/seed0", adapter, causal=False)
        data[field].mkdir()
        write(data[field], seed)
    for name in ("encode_split", "training_split"):
        read = getattr(training, name)
        monkeypatch.setattr(training, name, lambda base, field, *rest, read=read: read(base, domain, *rest))
    monkeypatch.setattr(training, "mixture_code", lambda _: "as it is")

    def train(out, precision="fp32", rates=(0.02,), **options):
        given = {"mixer": "xlora", "base": "tiny", "experts": dict.fromkeys(folders, "lora"), **options}
        schedule = {"steps": 6, "batch_tokens": 256, "learning_rates": rates, "save_every": 2, "precision": precision}
        places = (base.folder, folders, data, dict.fromkeys(folders, task), (0,), "cpu", tmp_path / "checkpoints", 4)
        training.train_mixture("x", entry(given | {"training": schedule}), *places, out)
        return out / "seed0"

    return SimpleNamespace(base=base, train=train, folder=tmp_path, data=data, task=task, domain=domain)


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("options", [{}, {"train_experts": True, "domain_loss": 0.1}], ids=["gate", "all"])
def test_a_killed_training_goes_on_to_the_same_mixture(study, options, monkeypatch):
    expected = files(study.train(study.folder / "whole", **options))
    update, calls = training.train_model.__globals__["update"], []

    def killed(*given):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return update(*given)

    with monkeypatch.context() as patched:
        patched.setitem(training.train_model.__globals__, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            study.train(study.folder / "parts", **options)
    assert not (study.folder / "parts").exists() and list((study.folder / "checkpoints").iterdir())
    calls.clear()
    monkeypatch.setitem(
        training.train_model.__globals__, "update", lambda *given: (calls.append(1), update(*given))[1]
    )
    assert files(study.train(study.folder / "parts", **options)) == expected
    assert len(calls) == 2  # four of six steps were saved
    assert not list((study.folder / "checkpoints").iterdir())


def test_a_rate_is_chosen_on_every_family_and_what_was_tried_before_leaves_no_trace(study):
    found = study.train(study.folder / "grid", rates=(1e-9, 0.02), train_experts=True)
    run = read_json(found / "mixture.json")
    assert run["learning_rate"] == min(run["grid"], key=lambda trial: trial["valid_loss"])["rate"] == 0.02
    assert files(found) == files(study.train(study.folder / "alone", train_experts=True))


def test_a_trained_mixture_opens_and_predicts_better_than_it_began(study):
    base = load_base(study.base.folder)
    opened = open_mixture(study.train(study.folder / "mixture", train_experts=True), base)
    losses = {"after": 0.0, "before": 0.0}
    for place, field in enumerate(opened.domains):
        items = training.encode_split(base, field, study.data[field], study.task, "gate")
        opened.domain = place
        with torch.no_grad():
            losses["after"] += float(base.loss(opened, base.collate(items))[0])
    opened.remove_experts()
    given = {field: deltas.load_adapter(study.folder / field / "seed0") for field in opened.domains}
    start = Mixture(base.model, given, registry.load_module("mixer", "uniform").Mixer()).eval()
    for place, field in enumerate(opened.domains):
        items = training.encode_split(base, field, study.data[field], study.task, "gate")
        start.domain = place
        with torch.no_grad():
            losses["before"] += float(base.loss(start, base.collate(items))[0])
    assert losses["after"] < losses["before"]


def test_a_training_in_bf16_autocast_ends_with_a_finite_gate(study):
    folder = study.train(study.folder / "mixture", precision="bf16")
    opened = open_mixture(folder, load_base(study.base.folder))
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in opened.gate.parameters())
