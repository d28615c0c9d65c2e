"""Trans-LoRA: what is invented, kept, labelled and learnt, on tiny bases and simulated records."""

from dataclasses import replace
from functools import cache
from itertools import chain, product
from types import SimpleNamespace

import models
import numpy as np
import pytest
import torch
from studies import ROOT, changed, shipped
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EsmForMaskedLM,
    PreTrainedTokenizerFast,
    WhisperForConditionalGeneration,
)

from loratory.adapters import core
from loratory.bases.core import load_base
from loratory.bases.decoding import Sampling
from loratory.bases.fair_esm import esm_config, esm_tokenizer
from loratory.config import Evaluation, adapter_entry, load_config, read_config, stage_entry
from loratory.data.files import read_json
from loratory.domains.contract import Example
from loratory.domains.dataset import build_dataset
from loratory.domains.fetch import fetch_source, open_source
from loratory.domains.protein.task import LETTERS
from loratory.errors import InputError
from loratory.lifecycle import inventing, run, transfer
from loratory.lifecycle.likeness import nearest_likeness
from loratory.lifecycle.room import open_room
from loratory.lifecycle.sequence import JointTraining

NEW = ("unfiltered", "trans_lora")
DRAWN = {"inputs": 12, "judged": 10, "threshold": 0.1, "tries": 20}
ASKED = {"protein": {"tokens": "letters"}, "speech": {"max_new_tokens": 12}}
DOMAIN = {"causal": "protein", "masked": "protein", "encoder": "lncrna", "whisper": "speech"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """domain -> its dataset of the test config, and how its records are put."""
    made = {}

    def build(domain: str):
        if domain not in made:
            folder = tmp_path_factory.mktemp(domain)
            given = getattr(load_config(ROOT / "config" / "test.yaml").domains, domain)
            fetch_source(domain, given.source, "domain", 0, folder / "raw")
            build_dataset(domain, open_source(domain, folder / "raw"), given.dataset, 0, folder / "data")
            task = given.task.model_copy(update=ASKED.get(domain, {}))
            made[domain] = SimpleNamespace(data=folder / "data", task=task)
        return made[domain]

    return build


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name of a tiny base: its folder}; of most families one of random weights."""
    folder = tmp_path_factory.mktemp("bases")
    models.causal_base(folder / "causal", ears=False)
    models.save(folder / "deeper", "causal", models.llama(300, num_hidden_layers=3), models.text_tokenizer())
    ears = models.whisper_base(folder / "short").tokenizer
    config = models.whisper_config(len(ears))
    config.max_source_positions = 200  # 4 s
    torch.manual_seed(0)
    spoken = WhisperForConditionalGeneration(config)
    spoken.model.decoder.embed_tokens.weight.data[:5] = 0  # so that it writes words, and no marks
    models.save(folder / "whisper", "whisper", spoken, ears)
    words = codon_tokenizer()
    torch.manual_seed(0)
    models.save(folder / "encoder", "encoder", models.bert(len(words)), words)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    writer = BertForMaskedLM(BertConfig(**sizes, vocab_size=len(words), max_position_embeddings=64))
    models.save(folder / "writer", "masked", writer, words)
    esm = EsmForMaskedLM(esm_config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
    models.save(folder / "masked", "masked", esm, esm_tokenizer(folder))
    return {path.name: path for path in folder.iterdir() if path.is_dir()}


def codon_tokenizer() -> PreTrainedTokenizerFast:
    """Of the 64 runs of three letters, and shorter ones."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    runs = map("".join, chain(*(product("acgt", repeat=length) for length in (1, 2, 3))))
    made = models.word_tokenizer([" ".join(runs)], 128, special)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")


def entry_of(domain: str, **options):
    named = {"procedure": "trans_lora", "base": "one", "target": "other", "domains": (domain,), "adapter": "lora"}
    return stage_entry(named | DRAWN | options)


def adapter_of(steps: int = 3, save_every: int = 0, rate: float = 0.01):
    schedule = {"steps": steps, "batch_tokens": 256, "learning_rates": [rate], "save_every": save_every}
    return adapter_entry({"method": "lora", "rank": 2, "training": schedule})


@pytest.fixture
def open_on(built, folders, tmp_path):
    """(domain, bases' names, options) -> the room on the first, and the entry."""

    def make(domain: str, base: str, target: str, steps: int = 3, seed: int = 0, save_every: int = 0, **options):
        entry, own = entry_of(domain, **options), built(domain)
        others = {"other": load_base(folders[target])}
        others |= {name: load_base(folders[name]) for name in entry.further_bases if name != "other"}
        adapter, data, tasks = adapter_of(steps, save_every), {domain: own.data}, {domain: own.task}
        where = ("cpu", tmp_path / "checkpoints", tmp_path / "out")
        return open_room("moved", entry, load_base(folders[base]), adapter, seed, data, tasks, *where, others), entry

    return make


def run_moved(family: str, built, folders, folder, device: str = "cpu", **options) -> SimpleNamespace:
    """What a whole stage that moves an adapter from a base to the same one has left."""
    domain = DOMAIN[family]
    own, entry = built(domain), entry_of(domain, **options)
    run.run_stage(
        name="moved",
        entry=entry,
        base_folder=folders[family],
        adapter=adapter_of(rate=1e-4 if family == "whisper" else 0.01),  # else it learns to end at once
        data={domain: own.data},
        tasks={domain: own.task},
        seeds=(0,),
        evaluation=Evaluation(max_records=4),
        device=device,
        checkpoints=folder / "checkpoints",
        out=folder / "out",
        further={name: folders[family if name == "other" else name] for name in entry.further_bases},
    )
    measured = {each["arm"]: each["measures"] for each in read_json(folder / "out" / "measures.json")}
    invented = read_json(folder / "out" / "invented.json")
    return SimpleNamespace(out=folder / "out", measured=measured, invented=invented)


@pytest.fixture(scope="module")
def moved(built, folders, tmp_path_factory):
    """family -> what `run_moved` gives."""
    options = {"encoder": {"generator": "writer", "labels": "soft"}}
    return cache(
        lambda family: run_moved(
            family, built, folders, tmp_path_factory.mktemp(f"moved_{family}"), **options.get(family, {})
        )
    )


# Whole stages.


@pytest.mark.parametrize("family", ["causal", "masked", "encoder"])
def test_every_row_of_the_table_is_there_and_says_how_inputs_came_about(moved, family):
    stage = moved(family)
    first = ["base", "source_base", "source_lora", "direct_copy", "target_real", "seeds_only"]
    assert [*stage.measured] == [*first, *NEW]
    for arm in NEW:
        assert {"duplicates", "malformed", "distance to seeds", "records learnt"} <= stage.measured[arm].keys()
    assert 0 < stage.measured["trans_lora"]["acceptance"] <= 1
    assert [each["arm"] for each in stage.invented] == [*NEW]
    assert all(len(each["texts"]) == DRAWN["inputs"] for each in stage.invented)
    kept = {path.name for path in (stage.out / "kept" / "seed0").iterdir()}
    assert kept == {"source_lora", "target_real", "seeds_only", *NEW}


def test_whisper_learns_from_clips_that_no_adapter_has_heard_and_the_arm_says_so(moved):
    stage = moved("whisper")
    assert [*stage.measured][-2:] == ["seeds_only", "pseudo_labelling"]
    assert not {*NEW} & {*stage.measured} and stage.invented == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", ["causal", "masked", "encoder", "whisper"])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_stage_runs_on_a_gpu(built, folders, tmp_path, family, labels):
    options = {"generator": "writer"} if family == "encoder" else {}
    stage = run_moved(family, built, folders, tmp_path, "cuda", labels=labels, **options)
    assert [*stage.measured][-1] == ("pseudo_labelling" if family == "whisper" else "trans_lora")


# Invariants of the method.


def test_no_real_row_but_the_seeds_is_learnt_from_as_invented(moved, open_on):
    room, entry = open_on("protein", "causal", "causal")
    question = transfer.read_question(room, "protein", entry.seed_examples)
    real = {inventing.input_digest(each.target) for each in question.known}
    seeds = {inventing.input_digest(each.target) for each in question.seeds}
    assert len(question.seeds) == 5 and question.real.digests >= real - seeds
    for each in moved("causal").invented:
        assert not {inventing.input_digest(text) for text in each["texts"]} & real


@pytest.mark.parametrize("family, options", [("causal", {}), ("encoder", {"generator": "writer"}), ("whisper", {})])
def test_a_planted_real_record_is_refused_before_anything_is_learnt_from_it(open_on, monkeypatch, family, options):
    room, entry = open_on(DOMAIN[family], family, family, **options)
    planted = inventing.real_examples(room, DOMAIN[family], "train")
    seeds = {each.id for each in inventing.choose_seeds(planted, entry.seed_examples, room.seed)}
    leak = next(each for each in planted if each.id not in seeds)
    learn = transfer.learn_inputs

    def add_leak(name, room, target, questions, inputs, *rest):
        return learn(name, room, target, questions, {domain: [*own, leak] for domain, own in inputs.items()}, *rest)

    monkeypatch.setattr(transfer, "learn_inputs", add_leak)
    seen = []
    with pytest.raises(InputError, match=rf"moved: {DOMAIN[family]}:{leak.id}: a real record among what is invented"):
        for arm in entry.iterate_arms(entry, room):
            seen.append(arm.name)
    assert seen[-1] == "seeds_only"


def test_candidates_that_say_what_a_real_record_says_are_left_out_and_counted():
    real = inventing.input_digest("A known ROW>")
    texts = ["a known  row>", "something new>", "something new>", "the first seed>", None, "x"]
    found = inventing.invent_inputs(
        lambda batch: texts, inventing.take_all, ["the first seed>"], {real}, wanted=5, most=6, threshold=0.5
    )
    assert found.unfiltered == found.kept == ["something new>"]
    assert (found.candidates, found.copies, found.duplicates, found.malformed) == (6, 1, 2, 2)


def test_soft_labels_of_a_source_without_a_change_teach_its_own_base_nothing(open_on):
    room, _ = open_on("protein", "causal", "causal")
    examples = inventing.real_examples(room, "protein", "train")[:6]
    lesson = {"protein": transfer.read_lesson(room.base, room.others["other"].base, examples)}
    core.attach(room.base.model, room.method, 0)
    unchanged = core.export(room.base.model, (), {})  # B is 0
    core.detach(room.base.model)
    room.base.model.requires_grad_(False)
    target = room.others["other"]
    target = replace(target, examples=lambda *_: lesson["protein"].target)

    def steepest(training) -> float:
        """The largest gradient of the first step."""
        layers = core.attach(target.base.model, target.method, 0)
        micro = training.micro_batches(training.make_hooks("protein", layers), "protein", 0)[0]
        training.loss(micro).total.backward()
        found = max(float(layer.adapter["B"].grad.abs().max()) for layer in layers.values())
        core.detach(target.base.model)
        return found

    with inventing.wear_stored(room.base, unchanged):
        soft = steepest(transfer.SoftTraining("it", target, ["protein"], room.base, lesson))
    assert soft < 1e-4 * steepest(JointTraining("it", target, ["protein"]))


@pytest.mark.parametrize("family", ["encoder", "whisper"])
def test_moving_to_the_same_base_by_real_inputs_is_self_distillation(open_on, family):
    domain = DOMAIN[family]
    room, _ = open_on(domain, family, family)
    target = room.others["other"]
    source = models.trained_adapter(room.base.model, room.method, 3, room.base.heads)
    inputs = [replace(each, target="") for each in inventing.real_examples(room, domain, "train")][:6]
    question = replace(transfer.read_question(room, domain, 2), real=inventing.RealInputs([], [], lambda each: ""))
    lesson = transfer.make_lesson(room, target.base, question, inputs, source)
    with inventing.wear_stored(room.base, source):
        items = [room.base.encode(each) for each in inputs]
        if lesson.choices:
            best = room.base.choice(room.base.model, items, lesson.choices).argmax(1).tolist()
            answers = [lesson.choices[i] for i in best]
        else:
            answers = room.base.text(room.base.model, items, room.tasks[domain].max_new_tokens)
    assert [each.target for each in lesson.examples] == [answer for answer in answers if answer]
    labelled = [target.base.encode(replace(each, target=answer)) for each, answer in zip(inputs, answers) if answer]

    def learnt(arms) -> dict:
        return {name: p.detach().clone() for arm in arms for name, p in core.trainable_parameters(arm.model).items()}

    moved = learnt(transfer.learn_lessons("it", target, {domain: lesson}, room.base, source, "hard"))
    plain = learnt(JointTraining("it", replace(target, examples=lambda *_: labelled), [domain]).iterate_arms())
    assert moved and all(torch.equal(moved[name], plain[name]) for name in plain)


def test_a_threshold_of_nothing_is_unfiltered_and_one_of_certainty_leaves_nothing(open_on):
    room, entry = open_on("protein", "causal", "causal", threshold=0.0)
    for arm in entry.iterate_arms(entry, room):
        found = {name: p.detach().clone() for name, p in core.trainable_parameters(arm.model).items()}
        if arm.name == "unfiltered":
            before, texts = found, arm.invented
    assert arm.invented == texts and all(torch.equal(found[name], before[name]) for name in before)
    assert arm.measures["acceptance"] == 1
    room, entry = open_on("protein", "causal", "causal", threshold=1.0)
    with pytest.raises(InputError, match=r"moved: protein: nothing is left of 0 inputs .*lower `threshold`"):
        [*entry.iterate_arms(entry, room)]


def test_a_discriminator_is_at_a_loss_with_the_like_and_tells_random_letters_from_records(open_on):
    room, _ = open_on("protein", "causal", "causal", steps=40)
    form, random = Example("", "", "Seq=<", "", alphabet=LETTERS), np.random.default_rng(0)
    written = lambda letters: "".join(random.choice([*letters], 20)) + ">"  # noqa: E731
    real, alike = ([replace(form, target=written("MKTAYI")) for _ in range(60)] for _ in range(2))
    noise = [replace(form, target=written("ACDEFGHIKLMNPQRSTVWY")) for _ in range(60)]
    other = inventing.Discriminator("noise", room, real, noise)
    assert other.accuracy > 0.85
    assert other.shares(real[:5]).mean() > other.shares(noise[:5]).mean()
    assert abs(inventing.Discriminator("alike", room, real, alike).accuracy - 0.5) < 0.25


def test_the_same_seed_invents_the_same_and_another_one_other_inputs(open_on):
    def invent(seed):
        room, entry = open_on("protein", "masked", "masked", seed=seed)
        source = models.trained_adapter(room.base.model, room.method, 3)
        question = transfer.read_question(room, "protein", 5)
        write = transfer.make_writer(question, room, source, entry, stream=0)
        return write(0), write(1), transfer.make_writer(question, room, source, entry, stream=1)(0)

    first, second, apart = invent(0)
    assert invent(0) == (first, second, apart)
    assert len({tuple(first), tuple(second), tuple(apart), tuple(invent(1)[0])}) == 4


def test_the_weights_of_both_bases_stay_as_they_are(open_on):
    room, entry = open_on("protein", "causal", "deeper")
    bases = (room.base, room.others["other"].base)
    before = [{name: p.clone() for name, p in base.model.state_dict().items()} for base in bases]
    arms = []
    for arm in entry.iterate_arms(entry, room):
        arms.append(arm.name)
        trained = core.trainable_parameters(arm.model)
        assert all(".adapter." in name for name in trained)
    assert "direct_copy" not in arms, "the target has a layer more"
    for base, own in zip(bases, before):
        now = base.model.state_dict()
        assert now.keys() == own.keys() and all(torch.equal(now[name], own[name]) for name in own)


# What is invented, and what is refused.


def test_inputs_begin_and_end_as_all_seeds_do():
    seeds = ["The user liked Alien. Will they like Up?\n", "The user liked Brazil. Will they like Big?\n"]
    opening, closing = inventing.common_frame(seeds)
    assert (opening, closing) == ("The user liked", "?\n")
    more = " Heat. Will they like Ran?\n\n### Input 4:\nThe user"
    assert inventing.read_input(more, opening, closing, False) == "The user liked Heat. Will they like Ran?\n"
    assert inventing.read_input(" Heat. Will they like", opening, closing, True) is None
    assert inventing.read_input("  ?", opening, closing, True) is None
    assert inventing.read_input(" one\n\n### Input 3", "", "", False) == " one"
    assert inventing.read_input(" without an end", "", "", False) is None


def test_a_causal_generator_is_shown_seeds_alone_and_as_many_as_fit(open_on, monkeypatch):
    room, entry = open_on("protein", "causal", "causal")
    seeds = [Example(word, "", f"will the user like {word} or not", "") for word in ("it", "text", "no")]
    shown = []

    def note(base, item, limit, sampling):
        shown.append(base.tokenizer.decode(item.ids))
        return [f" {number} or not" for number in range(inventing.BATCH)]

    monkeypatch.setattr(inventing, "continue_together", note)
    write = inventing.write_prompts(room.base, seeds, 0, entry)
    assert write(0)[3] == write(1)[3] == "will the user like 3 or not"
    assert all(text.endswith("will the user like") and text.count("### Input") == 4 for text in shown)
    assert shown[0] != shown[1], "in several orders"
    tokens = len(room.base.tokens(shown[0]))
    monkeypatch.setattr(type(room.base), "context", property(lambda base: tokens))
    write(0)
    assert 2 <= shown[-1].count("### Input") < 4
    monkeypatch.setattr(type(room.base), "context", property(lambda base: 20))
    with pytest.raises(InputError, match=r"one seed leaves no room for another input .20 tokens."):
        write(0)


def test_a_prompt_that_is_read_once_is_continued_as_if_each_row_had_read_it(folders):
    base = load_base(folders["causal"])
    item = base.encode(Example("", "", "will the user like it", ""))
    greedy = base.text(base.model, [item], 12)
    drawn = inventing.continue_together(base, item, 12, Sampling(0, 1.0, top_k=1))
    assert drawn == greedy * inventing.BATCH
    assert len({*inventing.continue_together(base, item, 12, Sampling(0, 1.0))}) > 1


def test_holes_alone_are_filled_and_letters_stay_letters(open_on):
    room, entry = open_on("protein", "masked", "masked", hidden=0.3)
    question = transfer.read_question(room, "protein", 5)
    for number, text in enumerate(inventing.fill_seeds(room.base, question.seeds, 0, entry)(0)):
        seed = question.seeds[number % 5].target
        assert len(text) == len(seed)
        assert 0 < sum(one != other for one, other in zip(text, seed)) <= round(0.3 * len(seed))


def test_transcripts_of_clips_that_are_labelled_are_never_read(open_on):
    room, _ = open_on("speech", "whisper", "whisper")
    question = transfer.read_question(room, "speech", 5)
    assert question.known and all(each.target == "" for each in question.known)
    heard = {inventing.clip_digest(each) for each in question.known}
    assert not heard & {inventing.clip_digest(each) for each in inventing.real_examples(room, "speech", "train")}


def test_soft_labels_of_other_vocabularies_are_refused_by_name(open_on):
    room, entry = open_on("protein", "masked", "masked", labels="soft")
    other = room.others["other"].base
    other.tokenizer.add_tokens(["brandnew"])
    with pytest.raises(InputError, match=r"moved\.labels: no soft labels of protein: the vocabularies of masked and"):
        next(entry.iterate_arms(entry, room))


def test_a_generator_of_whole_records_is_refused(open_on):
    room, entry = open_on("protein", "causal", "causal", generator="writer")
    with pytest.raises(InputError, match=r"moved\.generator: protein: the source itself writes whole records"):
        next(entry.iterate_arms(entry, room))


MOVED = {
    "procedure": "trans_lora",
    "base": "mini_lm",
    "target": "mini_lm",
    "domains": ["protein"],
    "adapter": "one_rate",
}
WRONG = [
    ({"target": "mini_ml"}, "target: unknown base .mini_ml.; expected one of .*did you mean `mini_lm`"),
    ({"target": "mini_whisper"}, "target: trans_lora cannot take mini_whisper for it .whisper.; expected .* causal"),
    (
        {"generator": "mini_bert"},
        "generator: trans_lora cannot take mini_bert for it .encoder.; expected .* causal or mask",
    ),
    (
        {"base": "mini_bert", "target": "mini_bert", "domains": ["lncrna"]},
        "base: a base of family encoder writes no inputs: name .* under `generator` .mini_bert.",
    ),
    ({"seed_examples": 1}, "seed_examples: wrong value .1.; expected greater than or equal to 2"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=[line.split(":")[0] for _, line in WRONG])
def test_a_wrong_entry_is_told_in_one_line(changes, line):
    with pytest.raises(InputError, match=rf"study\.yaml: lifecycle\.moved\.{line}"):
        read_config(changed(shipped("test"), {"lifecycle": {"moved": MOVED | changes}}), "study.yaml")


class Stopped(Exception):
    """As a kill, between two trainings."""


def test_a_stopped_stage_goes_on_with_what_it_had_invented(open_on, monkeypatch):
    def run_all(room, entry):
        found = {}
        for arm in entry.iterate_arms(entry, room):
            found[arm.name] = {name: p.detach().clone() for name, p in core.trainable_parameters(arm.model).items()}
        return found, arm.invented

    learn = transfer.learn_inputs

    def stop(name, *rest):
        raise Stopped

    monkeypatch.setattr(transfer, "learn_inputs", stop)
    with pytest.raises(Stopped):
        run_all(*open_on("protein", "causal", "causal", save_every=2))
    monkeypatch.setattr(transfer, "learn_inputs", learn)

    def never(*_):
        raise AssertionError("invented anew")

    monkeypatch.setattr(inventing, "invent_inputs", never)
    again = run_all(*open_on("protein", "causal", "causal", save_every=2))
    monkeypatch.undo()
    room, entry = open_on("protein", "causal", "causal")
    whole, texts = run_all(replace(room, job=lambda title: replace_home(room.job(title))), entry)
    assert again[1] == texts
    for arm, own in whole.items():
        assert all(torch.equal(again[0][arm][name], tensor) for name, tensor in own.items()), arm


def replace_home(job):
    """The job with checkpoints of its own."""
    job.folder = job.folder.with_name(f"{job.folder.name}-whole")
    return job


# How near inputs come to others.


def test_likeness_is_that_of_the_runs_that_others_do_not_all_share():
    frame = "once upon a time there was"
    endings = ("a red fox on the hill", "one blue bird in a tall tree", "no one at home at all")
    others = [f"{frame} {ending}" for ending in endings]
    assert nearest_likeness([others[1]], others) == [1.0]
    assert nearest_likeness([f"{frame} nothing else that anybody knows"], others) == [0.0]
    assert 0 < nearest_likeness(["MKTAYIAK"], ["MKTAYIWW", "GGGGGGGG"])[0] < 1


def test_proteins_are_compared_by_their_residues():
    from loratory.domains.protein.metrics import nearest_identities

    known = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"
    texts = [f"{known}>", "!!", "WWWWPPPPGGGGHHHHWWWWPPPPGGGGHHHHWWWWPPPPGGGG>"]
    exact, none, other = nearest_identities(texts, [{"sequence": known}])
    assert exact == pytest.approx(1, abs=0.01) and none == 0 and other < 0.5
