"""What we say of causal, encoder and folding bases, against a few lines of plain transformers on the same folder.

The shipped small bases answer simulated records; SmolLM2 answers real ones, where its weights and the public samples
lie. A wrong prompt, a lost token or a shifted label would be seen here at once.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import entry
from reference.records import public_records, simulated_records
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EsmForProteinFolding,
)

from loratory import config
from loratory.bases.core import load_base
from loratory.bases.decoding import Sampling
from loratory.bases.families.causal import Family as Causal
from loratory.bases.families.folding import fold_sequence, load_folding_model
from loratory.bases.prepare import prepare_folder
from loratory.config import RESOURCES
from loratory.data.alphabets import RESIDUES
from loratory.domains.examples import domain_examples, domain_prompts
from loratory.errors import InputError

SHIPPED, N = RESOURCES / "bases", 4
TASKS = {
    "mini_lm": {"protein": {}, "lncrna": {"window": 90, "max_windows": 1}, "recsys": {"history": 2}},
    "smollm2_135m": {
        "protein": {},
        "lncrna": {"prompt": "", "window": 240, "max_windows": 1, "layout": "letters"},
        "recsys": {"max_prompt": 900},
    },
}


def opened(name: str, family: str, request, tmp_path_factory) -> SimpleNamespace:
    """A base as the workflow opens it, its folder, and records for it."""
    if (SHIPPED / name).is_dir():
        source, folder = SHIPPED / name, tmp_path_factory.mktemp("raw")
        records = cache(lambda domain: simulated_records(domain, N, folder / domain))
    else:
        source = request.getfixturevalue("real_weights")(name)
        data = request.getfixturevalue("shared_data")
        records = cache(lambda domain: public_records(domain, N, data))
    folder = tmp_path_factory.mktemp("base") / name
    prepare_folder(source, name, entry(family), folder)
    return SimpleNamespace(name=name, folder=folder, base=load_base(folder), records=records)


@pytest.fixture(scope="module", params=TASKS)
def causal(request, tmp_path_factory):
    given = opened(request.param, "causal", request, tmp_path_factory)
    given.tokenizer = AutoTokenizer.from_pretrained(given.folder)
    given.model = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32).eval()
    return given


def asked(given, domain: str, **options) -> list:
    task = config.domain_options(domain, "Task", TASKS[given.name][domain] | options)
    return domain_examples(domain, given.records(domain), task, "causal")


def plain_logs(given, context: str, target: list[int], letters: list[int] | None = None) -> torch.Tensor:
    """Log probabilities `[target, vocabulary | letters]` at the places of the target's tokens, one row at a time."""
    prompt = given.tokenizer(context)["input_ids"]
    logits = given.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    return (logits if letters is None else logits[:, letters]).log_softmax(-1)


@torch.no_grad()
def test_protein_scores_are_the_plain_sums(causal):
    """As text: the tokens of the whole string and the end token, after the opening that is not scored."""
    questions = asked(causal, "protein")
    found = causal.base.nll(causal.base.model, [causal.base.encode(question) for question in questions])
    for record, (nll, tokens) in zip(causal.records("protein"), found):
        whole = causal.tokenizer(f"Seq=<{record['sequence']}>")["input_ids"]
        target = [*whole[len(causal.tokenizer("Seq=<")["input_ids"]) :], causal.tokenizer.eos_token_id]
        logs = plain_logs(causal, "Seq=<", target)
        expected = -sum(float(row[id]) for row, id in zip(logs, target))
        assert (nll, tokens) == (pytest.approx(expected, rel=1e-5), len(target))


@torch.no_grad()
def test_protein_scores_letter_by_letter_are_the_plain_sums_over_the_alphabet(causal):
    questions = asked(causal, "protein", tokens="letters")
    found = causal.base.nll(causal.base.model, [causal.base.encode(question) for question in questions])
    letters = causal.tokenizer.convert_tokens_to_ids([*RESIDUES, ">"])
    for record, (nll, tokens) in zip(causal.records("protein"), found):
        target = causal.tokenizer.convert_tokens_to_ids([*record["sequence"], ">"])
        logs = plain_logs(causal, "Seq=<", target, letters)
        expected = -sum(float(row[letters.index(id)]) for row, id in zip(logs, target))
        assert (nll, tokens) == (pytest.approx(expected, rel=1e-5), record["length"] + 1)


@torch.no_grad()
@pytest.mark.parametrize("domain", ["lncrna", "recsys"])
def test_choices_are_between_the_plain_probabilities_of_their_first_tokens(causal, domain):
    questions = asked(causal, domain)
    choices = questions[0].choices
    items = [causal.base.encode(question) for question in questions]
    found = causal.base.choice(causal.base.model, items, choices)
    for question, row in zip(questions, found):
        context = causal.tokenizer(question.prompt)["input_ids"]
        together = [causal.tokenizer(question.prompt + choice)["input_ids"] for choice in choices]
        assert all(ids[: len(context)] == context for ids in together), "prompt and choice would merge"
        logits = causal.model(torch.tensor([context])).logits[0, -1]
        expected = logits[[ids[len(context)] for ids in together]].log_softmax(-1)
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_greedy_text_is_what_generate_writes(causal):
    """In one padded batch, after prompts of unequal lengths."""
    questions = [*asked(causal, "recsys")[:2], *asked(causal, "protein")[:1]]
    prompts = [question.prompt for question in questions]
    found = causal.base.text(causal.base.model, [causal.base.encode(question) for question in questions], 12)
    for prompt, text in zip(prompts, found):
        ids = torch.tensor([causal.tokenizer(prompt)["input_ids"]])
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": causal.base.pad_id}
        written = causal.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        assert text == causal.tokenizer.decode(written, skip_special_tokens=True)


@torch.no_grad()
def test_samples_of_letters_are_proteins(causal):
    task = config.domain_options("protein", "Task", {"tokens": "letters", "max_new_tokens": 20})
    items = [causal.base.encode(example) for example in domain_prompts("protein", [], 6, task, "causal")]
    found = causal.base.text(causal.base.model, items, 20, Sampling(0))
    assert all(set(text.removesuffix(">")) <= set(RESIDUES) for text in found) and len(set(found)) > 3


def test_a_chat_is_the_template_of_the_published_tokenizer_or_refused(causal):
    [question, *_] = asked(causal, "recsys", chat=True)
    if causal.name == "mini_lm":
        with pytest.raises(InputError, match="no chat template"):
            causal.base.encode(question)
        return
    turn = [{"role": "user", "content": question.prompt}]
    expected = causal.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    item = causal.base.encode(question)
    assert item.ids == [*expected, *causal.tokenizer(question.target)["input_ids"], causal.tokenizer.eos_token_id]
    assert causal.tokenizer.decode(expected).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named Smol"
    )


def test_a_window_of_6000_nucleotides_is_6000_tokens_of_smollm2(real_weights):
    folder = real_weights("smollm2_135m")
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=8192))
    base = Causal(folder, {"weights_sha256": ""}, model, AutoTokenizer.from_pretrained(folder))
    task = config.domain_options("lncrna", "Task", {"layout": "letters", "window": 6000, "prompt": ""})
    sequence = "ACGTTGCANGCA" * 500
    record = {"id": "r", "group": "g", "sequence": sequence, "length": len(sequence), "label": 1}
    [question] = domain_examples("lncrna", [record], task, "causal")
    item = base.encode(question)
    assert base.begin_ids == [] and item.labels.count(-100) == 6001 and len(item.ids) < 8192


@torch.no_grad()
@pytest.mark.parametrize("name", ["mini_bert", "dnabert2"])
def test_an_encoders_choices_are_the_plain_classifiers(name, request, tmp_path_factory):
    given = opened(name, "encoder", request, tmp_path_factory)
    options = {"window": 90, "max_windows": 1, "layout": "3-mers" if name == "mini_bert" else "sequence"}
    questions = domain_examples(
        "lncrna", given.records("lncrna"), config.domain_options("lncrna", "Task", options), "encoder"
    )
    found = given.base.choice(given.base.model, [given.base.encode(q) for q in questions], questions[0].choices)
    tokenizer = AutoTokenizer.from_pretrained(given.folder)
    model = AutoModelForSequenceClassification.from_pretrained(given.folder, dtype=torch.float32, num_labels=2).eval()
    for record, row in zip(given.records("lncrna"), found):
        window = record["sequence"][:90]
        text = " ".join(window[i : i + 3] for i in range(0, 90, 3)).lower() if name == "mini_bert" else window
        ids = tokenizer(text, return_tensors="pt")
        assert tokenizer.unk_token_id not in ids["input_ids"], "the base reads words that it does not know"
        torch.testing.assert_close(row, model(**ids).logits[0].log_softmax(-1), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mini_fold", "esmfold_v1"])
def test_a_fold_is_the_plain_models(name, request):
    folder = SHIPPED / name if name == "mini_fold" else request.getfixturevalue("real_weights")(name)
    sequence = "EALKKAEELLKEALAKAEELLAKAGDPEAL"
    found = fold_sequence(load_folding_model(folder), sequence)
    model = EsmForProteinFolding.from_pretrained(folder, dtype=torch.float32).eval()
    model.trunk.set_chunk_size(64)
    tokens = AutoTokenizer.from_pretrained(folder)([sequence], return_tensors="pt", add_special_tokens=False)
    plain = model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    np.testing.assert_allclose(found.coordinates[:, :3], plain.positions[-1, 0, :, :3].numpy(), atol=1e-2)
    np.testing.assert_allclose(found.plddt, 100 * plain.plddt[0, :, 1].numpy(), atol=1e-2)
