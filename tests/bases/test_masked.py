"""Masked language models: what is hidden, what a pseudo-likelihood is, and adapters and mixtures on them."""

import math

import pytest
import torch
from models import TEXTS, bert, entry, save, trained_adapter
from transformers import (
    BertForMaskedLM,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from loratory import registry
from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.bases.checks import check_model_folder
from loratory.bases.core import IGNORED, load_base
from loratory.bases.fair_esm import esm_config, esm_tokenizer
from loratory.bases.prepare import prepare_folder
from loratory.domains.contract import Example
from loratory.domains.protein import task
from loratory.domains.protein.sources import Task
from loratory.errors import InputError
from loratory.evaluation.answers import run_output
from loratory.mixers.core import Mixture
from loratory.training.pretrain import word_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PROTEINS = ("MKTAYIAKQR", "GAVLIMFWP", "MKKTAIAIAVALAGFATVAQA")


def esm(**changes) -> EsmForMaskedLM:
    torch.manual_seed(0)
    model = EsmForMaskedLM(esm_config(**SIZES, **changes)).eval()
    for parameter in model.parameters():  # so that nothing is near uniform
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    return save(folder / "esm", "masked", esm(), esm_tokenizer(folder))


def word_masks() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[MASK]"]
    core_ = word_tokenizer([TEXTS[-1]], 64, special)
    return PreTrainedTokenizerFast(tokenizer_object=core_, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")


def question(sequence=PROTEINS[0], id="r", **more):
    return Example(id=id, group="g", prompt="", target=sequence, **more)


def encoded(base, tokens="text"):
    records = [{"id": str(i), "group": "g", "sequence": sequence} for i, sequence in enumerate(PROTEINS)]
    return [base.encode(example) for example in task.examples(records, Task(tokens=tokens), "masked")]


@torch.no_grad()
def by_hand(base, item, among=None) -> float:
    """Summed nats, one pass for each token and one row for each pass."""
    total = 0.0
    for place, label in enumerate(item.labels):
        if label != IGNORED:
            ids = torch.tensor([item.ids])
            ids[0, place] = base.tokenizer.mask_token_id
            logits = base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, place]
            chosen = torch.arange(len(logits)) if among is None else torch.tensor(among)
            total -= float(logits[chosen].log_softmax(-1)[chosen.tolist().index(label)])
    return total


def test_every_residue_is_scored_and_what_frames_it_is_not(base):
    item = base.encode(question())
    assert base.tokenizer.convert_ids_to_tokens(item.ids) == ["<cls>", *PROTEINS[0], "<eos>"]
    assert item.labels == [IGNORED, *item.ids[1:-1], IGNORED]


@torch.no_grad()
def test_a_pseudo_likelihood_is_as_many_passes_as_residues_each_with_one_hidden(base, monkeypatch):
    items, rows = encoded(base), []
    base.model.register_forward_pre_hook(lambda _, __, given: rows.append(given["input_ids"]), with_kwargs=True)
    found = base.nll(base.model, items)
    assert sum(map(len, rows)) == sum(map(len, PROTEINS))
    assert all(((ids == base.mask_id).sum(1) == 1).all() and not (ids == base.pad_id).any() for ids in rows)
    for item, sequence, (nats, tokens) in zip(items, PROTEINS, found):
        assert tokens == len(sequence) and nats == pytest.approx(by_hand(base, item), abs=1e-4)
    monkeypatch.setattr("loratory.bases.families.masked.PASS_POSITIONS", 25)
    assert [n for n, _ in base.nll(base.model, items)] == pytest.approx([n for n, _ in found], abs=1e-4)


@torch.no_grad()
def test_probabilities_are_among_all_tokens_or_among_the_twenty_residues(base):
    letters = [base.tokenizer.convert_tokens_to_ids(letter) for letter in "ACDEFGHIKLMNPQRSTVWY"]
    for all_tokens, residues in zip(encoded(base), encoded(base, "letters")):
        assert all_tokens.ids == residues.ids
        (wide, _), (narrow, _) = base.nll(base.model, [all_tokens])[0], base.nll(base.model, [residues])[0]
        assert narrow < wide and narrow == pytest.approx(by_hand(base, residues, letters), abs=1e-4)


def test_training_hides_15_per_cent_as_published(base):
    rng = torch.Generator().manual_seed(1)
    letters = "ACDEFGHIKLMNPQRSTVWY"
    sequence = "".join(letters[i] for i in torch.randint(20, (1000,), generator=rng).tolist())
    item = base.encode(question(sequence))
    fates = {"mask": 0, "other": 0, "same": 0}
    for draw in range(40):
        ids, labels = base.hide_targets(item, draw)
        asked = [place for place, label in enumerate(labels) if label != IGNORED]
        assert len(asked) == 150 and all(labels[place] == item.ids[place] for place in asked)
        assert all(ids[place] == item.ids[place] for place in range(len(ids)) if place not in asked)
        for place in asked:
            fate = "mask" if ids[place] == base.mask_id else "same" if ids[place] == item.ids[place] else "other"
            fates[fate] += 1
    shares = {fate: n / 6000 for fate, n in fates.items()}
    assert shares == pytest.approx({"mask": 0.8, "other": 0.1 * 27 / 28, "same": 0.1 + 0.1 / 28}, abs=0.02)


def test_what_is_hidden_depends_on_seed_step_and_record_and_not_on_batch_mates(base):
    items = encoded(base)
    whole = base.training_batch(items, 7)
    for i, item in enumerate(items):
        alone = base.training_batch([item], 7)
        for name, value in alone.items():
            assert torch.equal(whole[name][i, : item.length], value[0])
    assert any(base.hide_targets(items[2], 7) != base.hide_targets(items[2], draw) for draw in (8, 9))
    assert torch.equal(base.collate(items)["ids"], base.collate(items)["ids"])
    assert all((base.collate([item])["labels"] != IGNORED).any() for item in items)


@torch.no_grad()
def test_padding_changes_no_loss(base):
    items = encoded(base)
    loss, n = base.loss(base.model, base.collate(items))
    single = [base.loss(base.model, base.collate([item])) for item in items]
    assert n == sum(m for _, m in single) == base.count_targets(base.collate(items))
    torch.testing.assert_close(loss, sum(part for part, _ in single), rtol=1e-5, atol=1e-4)


def test_what_the_tokenizer_does_not_know_is_refused_and_never_scored(base):
    for sequence in ("MKJA", "mkta", "MK*"):
        with pytest.raises(InputError, match=r":r: the tokenizer does not know a part of the target"):
            base.encode(question(sequence))


def test_the_longest_sequence_has_1022_residues_as_in_esm2s_training(base):
    assert base.context == 1024 and base.encode(question("A" * 1022)).length == 1024
    with pytest.raises(
        InputError, match=r"does not fit into the base's context \(1025 tokens\); expected at most 1024"
    ):
        base.encode(question("A" * 1023))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_other_masked_models_are_read_to_their_last_position(kind, tmp_path):
    tokenizer = word_masks()
    if kind == "bert":
        config = bert(len(tokenizer)).config
        config.max_position_embeddings = 12
        model, longest = BertForMaskedLM(config), 12
    else:
        config = RobertaConfig(**SIZES, intermediate_size=48, vocab_size=len(tokenizer), max_position_embeddings=12)
        config.pad_token_id = 0
        model, longest = RobertaForMaskedLM(config), 11
    base = save(tmp_path / "b", "masked", model.eval(), tokenizer)
    assert base.context == longest
    item = base.encode(question(" ".join(["acg"] * longest)))
    batch = base.training_batch([item] * 20, 0) | {"labels": torch.full((20, longest), 3)}
    assert base.count_targets(batch) == base.loss(base.model, batch)[1] == 20 * longest
    [(nats, tokens)] = base.nll(base.model, [item])
    assert tokens == longest and nats == pytest.approx(by_hand(base, item), abs=1e-4)
    with pytest.raises(InputError, match="does not fit"):
        base.encode(question(" ".join(["acg"] * (longest + 1))))


def test_the_cost_of_a_likelihood_is_that_of_its_passes(base):
    item = base.encode(question())
    assert base.scoring_positions(item) == 10 * 12
    [columns] = run_output(base, base.model, "nll", [item], (), 0, None)
    assert columns["tokens"] == 10 and columns["nll"] > 0


def test_lora_lies_on_every_linear_layer_and_merged_it_is_the_same_function(base, tmp_path):
    items, method = encoded(base), Method(rank=2)
    adapter = trained_adapter(base.model, method, 1)
    assert len(adapter.deltas) == 6 * 2 + 1 and not any("contact" in name for name in adapter.deltas)
    bare = base.nll(base.model, items)
    deltas.save_adapter(tmp_path / "a", adapter, causal=False)
    core.apply(base.model, deltas.load_adapter(tmp_path / "a"), "a")
    changed = base.nll(base.model, items)
    core.detach(base.model)
    merged = load_base(base.folder)
    for name, delta in adapter.deltas.items():
        merged.model.get_submodule(name).weight.data.add_(delta.to_dense())
    assert abs(changed[0][0] - bare[0][0]) > 1e-2
    assert [n for n, _ in merged.nll(merged.model, items)] == pytest.approx([n for n, _ in changed], abs=1e-3)
    assert base.nll(base.model, items) == bare


@torch.no_grad()
def test_a_mixture_of_two_adapters_is_scored_as_their_mean_change(base):
    items = encoded(base)
    experts = {name: trained_adapter(base.model, Method(rank=2), seed) for seed, name in enumerate("ab")}
    mixer = registry.load_module("mixer", "uniform").Mixer()
    mixture = Mixture(base.model, experts, mixer).eval()
    found = base.nll(mixture, items)
    mixture.remove_experts()
    merged = load_base(base.folder)
    for adapter in experts.values():
        for name, delta in adapter.deltas.items():
            merged.model.get_submodule(name).weight.data.add_(delta.to_dense() / 2)
    assert [n for n, _ in found] == pytest.approx([n for n, _ in merged.nll(merged.model, items)], abs=1e-3)


def test_a_folder_of_a_masked_model_is_prepared_and_others_are_refused(base, tmp_path):
    esm().save_pretrained(tmp_path / "given")
    with pytest.raises(InputError, match="no whole tokenizer"):
        check_model_folder(tmp_path / "given", "masked")
    base.tokenizer.save_pretrained(tmp_path / "given")
    prepare_folder(tmp_path / "given", "b", entry("masked"), tmp_path / "b")
    assert load_base(tmp_path / "b").nll(load_base(tmp_path / "b").model, encoded(base)[:1])[0][1] == 10
    with pytest.raises(InputError, match=r"fix: `family: encoder` or `family: masked`"):
        check_model_folder(tmp_path / "given", "causal")
    torch.manual_seed(0)
    EsmForSequenceClassification(esm_config(**SIZES)).save_pretrained(tmp_path / "sorts")
    base.tokenizer.save_pretrained(tmp_path / "sorts")
    with pytest.raises(InputError, match="another architecture"):
        check_model_folder(tmp_path / "sorts", "masked")


def test_an_encoder_of_esm_leaves_contacts_alone_too_and_reads_1024_tokens(base, tmp_path):
    prepare_folder(base.folder, "b", entry("encoder"), tmp_path / "b")
    encoder = load_base(tmp_path / "b")
    assert encoder.context == 1024
    assert not any("contact" in name for name in core.linear_layers(encoder.model, encoder.heads))


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    tokenizer = word_masks()
    tokenizer.mask_token = None
    BertForMaskedLM(bert(len(tokenizer)).config).save_pretrained(tmp_path / "given")
    tokenizer.save_pretrained(tmp_path / "given")
    with pytest.raises(InputError, match="the tokenizer has no `mask_token`"):
        check_model_folder(tmp_path / "given", "masked")


@torch.no_grad()
def test_perplexity_of_a_uniform_model_is_the_number_of_tokens(base, tmp_path):
    model = esm()
    for parameter in model.lm_head.parameters():
        parameter.data.zero_()
    [(nats, tokens)] = base.nll(model, encoded(base)[:1])
    assert math.exp(nats / tokens) == pytest.approx(33)
