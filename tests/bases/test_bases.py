"""Every family: what is scored, that padding and batch mates are irrelevant, that audio and text meet."""

from math import ceil

import numpy as np
import pytest
import soundfile
import torch
from folding_model import save_folding_model
from models import causal_base, encoder_base, entry, llama, save, text_tokenizer, whisper_base, whisper_config
from safetensors.torch import load_file, save_file
from tokenizers.processors import ByteLevel
from transformers import WhisperConfig

from loratory.adapters.core import attach, head_parameters
from loratory.bases.audio import AudioPrefix
from loratory.bases.checks import check_readable
from loratory.bases.core import IGNORED, family_class, load_base
from loratory.bases.decoding import Sampling
from loratory.bases.families.causal import Family as Causal
from loratory.bases.families.folding import check_folder
from loratory.bases.prepare import prepare_folder
from loratory.data.audio import log_mel, read_audio
from loratory.domains.contract import Example
from loratory.domains.examples import domain_examples
from loratory.domains.lncrna.sources import Task
from loratory.errors import InputError
from loratory.registry import load_module, registered_names


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for i, seconds in enumerate((0.7, 1.3, 1.9)):
        tone = np.sin(np.arange(int(16000 * seconds)) * (0.05 + 0.02 * i)) * 0.3
        soundfile.write(folder / f"{i}.flac", tone, 16000)
        paths.append(str(folder / f"{i}.flac"))
    return paths


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return causal_base(tmp_path_factory.mktemp("bases") / "causal")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return whisper_base(tmp_path_factory.mktemp("bases") / "whisper")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_base(tmp_path_factory.mktemp("bases") / "encoder")


def question(prompt="will the user like it", target=" yes", id="r", **more):
    return Example(id=id, group="g", prompt=prompt, target=target, **more)


def test_only_the_target_and_its_end_are_scored(causal):
    item = causal.encode(question())
    scored = [id for id in item.labels if id != IGNORED]
    assert scored == [*causal.tokens(" yes"), causal.end_id]
    assert item.ids[0] == causal.tokenizer.bos_token_id


@torch.no_grad()
def test_other_prompt_labels_leave_the_loss_alone(causal):
    item = causal.encode(question())
    loss, n = causal.loss(causal.model, causal.collate([item]))
    assert n == len(causal.tokens(" yes")) + 1
    logits = causal.model(torch.tensor([item.ids])).logits[0].log_softmax(-1)
    expected = -sum(logits[i - 1, id] for i, id in enumerate(item.ids) if item.labels[i] != IGNORED)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_nll_and_choice_do_not_depend_on_batch_mates(causal, clips):
    items = [
        causal.encode(question()),
        causal.encode(question("coding noncoding yes no " * 3, " no")),
        causal.encode(question("transcribe", " yes no", audio=clips[1])),
    ]
    together = causal.nll(causal.model, items)
    for item, (nll, tokens) in zip(items, together):
        alone, count = causal.nll(causal.model, [item])[0]
        assert nll == pytest.approx(alone, abs=1e-4)
        assert tokens == count
    choices = causal.choice(causal.model, items[:2], (" no", " yes"))
    torch.testing.assert_close(choices[:1], causal.choice(causal.model, items[:1], (" no", " yes")), rtol=0, atol=1e-5)
    torch.testing.assert_close(choices.exp().sum(1), torch.ones(2))


@torch.no_grad()
def test_what_is_written_does_not_depend_on_batch_mates(causal, clips):
    items = [causal.encode(question(t, "", audio=a)) for t, a in (("transcribe", clips[0]), ("to text", clips[2]))]
    together = causal.text(causal.model, items, 8)
    assert together == [causal.text(causal.model, [item], 8)[0] for item in items]


@torch.no_grad()
def test_embeddings_in_place_of_ids_change_nothing(causal):
    batch = causal.collate([causal.encode(question())])
    inputs = causal.inputs(batch)
    embedded = {k: v for k, v in inputs.items() if k != "input_ids"}
    embedded["inputs_embeds"] = causal.model.get_input_embeddings()(batch["ids"])
    assert torch.equal(causal.model(**inputs).logits, causal.model(**embedded).logits)


@torch.no_grad()
def test_audio_takes_a_place_for_every_five_positions_and_reaches_the_model(causal, clips):
    items = [causal.encode(question("transcribe", " yes", audio=clip)) for clip in clips[:2]]
    assert [item.audio_tokens for item in items] == [ceil(11200 / 320 / 5), ceil(20800 / 320 / 5)]
    batch = causal.collate(items)
    assert batch["is_audio"].sum(1).tolist() == [item.audio_tokens for item in items]
    embeddings = causal.inputs(batch)["inputs_embeds"]
    for row, item in enumerate(items):
        heard = causal.audio(causal.audio.audio_states(item.audio))
        torch.testing.assert_close(embeddings[row, 1 : 1 + item.audio_tokens], heard, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_clip_is_heard_alone_and_as_the_encoder_hears_it_in_a_batch(causal, clips):
    ears = causal.audio
    samples = [read_audio(clip) for clip in clips]
    features = torch.from_numpy(np.stack([log_mel(clip, 80, ears.frames) for clip in samples]))
    together = ears.encoder(features).last_hidden_state
    for states, clip, heard in zip(together, samples, map(ears.audio_states, clips)):
        tokens = ears.prefix_length(len(clip))
        assert heard.shape == (tokens, 5 * ears.config.d_model)
        torch.testing.assert_close(heard, states[: 5 * tokens].reshape(tokens, -1), rtol=0, atol=1e-5)
    assert all(torch.equal(ears.audio_states(clip), ears.encode_clip(clip)) for clip in reversed(clips))


def test_a_clip_is_encoded_once_and_only_by_the_ears_that_ask(tmp_path, clips):
    first, second = (causal_base(tmp_path / name) for name in ("first", "second"))
    with torch.no_grad():
        next(second.audio.encoder.parameters()).add_(1.0)
    calls = []
    for base in (first, second):
        base.audio.encoder.register_forward_hook(lambda *_, base=base: calls.append(base))
    items = [first.encode(question("transcribe", " yes", audio=clip)) for clip in clips]
    for _ in range(3):
        first.nll(first.model, items)
    assert len(calls) == len(clips)
    assert not torch.equal(first.audio.audio_states(clips[0]), second.audio.audio_states(clips[0]))


def test_memory_of_what_was_heard_is_bounded():
    for width, most in ((384, 466), (1280, 139)):
        config = WhisperConfig(d_model=width, encoder_layers=0, decoder_layers=0)
        assert AudioPrefix(config, stack=5, width=8, hidden=8).audio_states.cache_info().maxsize == most


def test_a_full_window_has_no_more_tokens_than_the_encoder_has_positions():
    ears = AudioPrefix(whisper_config(), stack=7, width=8, hidden=8)
    assert ears.prefix_length(32000) == 100 // 7


def test_the_projector_learns_from_what_was_heard(causal, clips):
    causal.audio.projector.requires_grad_(True)
    try:
        loss, _ = causal.loss(causal.model, causal.collate([causal.encode(question("hm", " yes", audio=clips[0]))]))
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in causal.audio.projector.parameters())
    finally:
        causal.audio.projector.requires_grad_(False).zero_grad()


@torch.no_grad()
def test_padding_needs_no_mask_and_unscored_positions_no_logits(causal):
    items = [causal.encode(question(text)) for text in ("hm", "coding noncoding yes no " * 3)]
    batch = causal.collate(items)
    masked = causal.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    nll = -masked.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == IGNORED, 0.0)
    found = causal.token_nll(causal.model, batch)
    torch.testing.assert_close(found.sum(1), nll.sum(1), rtol=0, atol=1e-4)
    assert found.shape[1] == (labels != IGNORED).any(0).sum() < labels.shape[1]


def test_samples_depend_on_the_seed_alone(causal):
    items = [causal.encode(question("MKT", ""))] * 3
    first = causal.text(causal.model, items, 10, Sampling(1))
    assert first == causal.text(causal.model, items, 10, Sampling(1))
    assert first != causal.text(causal.model, items, 10, Sampling(2))


def test_a_nucleus_of_one_token_is_greedy(causal):
    items = [causal.encode(question("MKT", ""))]
    assert causal.text(causal.model, items, 10, Sampling(1, top_p=1e-9)) == causal.text(causal.model, items, 10)


@torch.no_grad()
def test_whisper_scores_its_target_and_writes_alike_in_any_batch(whisper, clips):
    items = [whisper.encode(question("", t, audio=a)) for t, a in (("yes no", clips[0]), ("the user", clips[2]))]
    loss, n = whisper.loss(whisper.model, whisper.collate(items))
    single = [whisper.loss(whisper.model, whisper.collate([item])) for item in items]
    torch.testing.assert_close(loss, single[0][0] + single[1][0], rtol=1e-4, atol=1e-4)
    assert n == single[0][1] + single[1][1]
    together = whisper.text(whisper.model, items, 6)
    assert together == [whisper.text(whisper.model, [item], 6)[0] for item in items]


@torch.no_grad()
def test_whisper_decodes_with_a_cache_what_it_decodes_without(whisper, clips):
    item = whisper.encode(question("", "yes", audio=clips[0]))
    batch = whisper.collate([item])
    ids = whisper.decoder_prompt()
    for _ in range(6):
        logits = whisper.model(input_features=batch["features"], decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    end = whisper.tokenizer.eos_token_id
    written = ids[len(whisper.decoder_prompt()) :]
    written = written[: written.index(end)] if end in written else written
    expected = whisper.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert whisper.text(whisper.model, [item], 6) == [expected]


@torch.no_grad()
def test_the_encoder_ignores_padding(encoder):
    choices = (" coding", " noncoding")
    items = [encoder.encode(question(p, " coding", choices=choices)) for p in ("acg tta", "acg tta gca cgt acg")]
    together = encoder.choice(encoder.model, items, choices)
    torch.testing.assert_close(together[:1], encoder.choice(encoder.model, items[:1], choices), rtol=0, atol=1e-5)


def test_an_example_longer_than_the_context_is_refused(causal):
    with pytest.raises(InputError, match=r":long: the example does not fit into the base's context .* at most 256"):
        causal.encode(question("yes no " * 400, id="long"))


def test_a_clip_longer_than_the_window_is_refused(causal, whisper, tmp_path):
    soundfile.write(tmp_path / "long.flac", np.sin(np.arange(48000) * 0.05) * 0.3, 16000)
    for base in (causal, whisper):
        with pytest.raises(InputError, match=r"longer than the base's audio window \(3\.00 s\); expected at most 2 s"):
            base.encode(question("", "yes", audio=str(tmp_path / "long.flac")))


@torch.no_grad()
def test_choices_with_a_common_first_token_are_scored_whole(causal):
    choices = ("MK", "MAC", "MKT")
    items = [causal.encode(question("coding " * n)) for n in (1, 3)]
    found = causal.choice(causal.model, items, choices)
    for item, row in zip(items, found):
        prompt, scores = item.ids[: item.labels.count(IGNORED)], []
        for choice in choices:
            ids = causal.tokens(choice)
            logs = causal.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            scores.append(sum(logs[len(prompt) - 1 + i, id] for i, id in enumerate(ids)))
        torch.testing.assert_close(row, torch.stack(scores).log_softmax(-1), rtol=0, atol=1e-5)


def test_choices_that_are_the_same_tokens_are_refused(causal):
    for choices in ((" yes", " yes"), (" yes", "")):
        with pytest.raises(InputError, match="choices are the same tokens, or none"):
            causal.choice(causal.model, [causal.encode(question())], choices)


def test_a_chat_template_that_takes_no_single_turn_is_refused(causal, monkeypatch):
    monkeypatch.setattr(causal.tokenizer, "chat_template", "{{ raise_exception('two turns') }}")
    with pytest.raises(InputError, match=r"the chat template does not take one turn \(.*two turns.*fix: set `task"):
        causal.encode(Example("u", "g", "hello", " yes", chat=True))


def test_a_base_begins_as_its_own_tokenizer_does_and_never_scores_what_nothing_precedes(causal):
    begin, tokens = causal.tokenizer.bos_token_id, causal.tokens("yes no")
    assert causal.begin_ids == [begin] and causal.encode(question("yes no", "")).ids == [begin, *tokens]
    tokenizer = text_tokenizer()
    tokenizer.backend_tokenizer.post_processor = ByteLevel()
    bare = Causal(causal.folder, causal.manifest, causal.model, tokenizer)
    assert bare.begin_ids == [] and bare.encode(question("yes no", "")).ids == tokens
    assert bare.encode(question("", "yes no")).ids == [begin, *tokens, bare.end_id]


CHAT = "{% for m in messages %}<|begin|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}<|begin|>assistant: "


def test_in_a_chat_the_prompt_is_a_users_turn_and_the_answer_the_assistants(causal, monkeypatch):
    monkeypatch.setattr(causal.tokenizer, "chat_template", CHAT)
    item = causal.encode(question("will the user", " yes", chat=True))
    turn = [{"role": "user", "content": "will the user"}]
    asked = causal.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert item.ids == [*asked, *causal.tokens(" yes"), causal.end_id] and item.labels.count(IGNORED) == len(asked)


def test_a_chat_is_refused_without_a_template_with_audio_and_by_other_families(causal, clips, monkeypatch):
    with pytest.raises(InputError, match=r":r: this base has no chat template.*chat: false"):
        causal.encode(question(chat=True))
    monkeypatch.setattr(causal.tokenizer, "chat_template", CHAT)
    with pytest.raises(InputError, match="no place for audio"):
        causal.encode(question(audio=clips[0], chat=True))
    record, task = {"id": "r", "group": "g", "sequence": "ACGT", "length": 4, "label": 1}, Task(chat=True)
    assert all(example.chat for example in domain_examples("lncrna", [record], task, "causal"))
    with pytest.raises(InputError, match=r"domains.lncrna.task.chat: only causal bases have chat templates .encoder"):
        domain_examples("lncrna", [record], task, "encoder")


def test_a_deaf_base_is_refused_for_audio(tmp_path, clips):
    base = causal_base(tmp_path / "deaf", ears=False)
    with pytest.raises(InputError, match="this base has no audio encoder"):
        base.encode(question(audio=clips[0]))


def test_changed_weights_are_noticed(tmp_path):
    causal_base(tmp_path / "b", ears=False)
    weights = load_file(tmp_path / "b" / "model.safetensors")
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] + 1}, tmp_path / "b" / "model.safetensors")
    with pytest.raises(InputError, match="weights differ"):
        load_base(tmp_path / "b")


MAKERS = {"causal": causal_base, "whisper": whisper_base, "encoder": encoder_base}


@pytest.mark.parametrize("family", MAKERS)
@torch.no_grad()
def test_a_base_in_half_precision_takes_half_the_memory_and_says_nearly_the_same(family, tmp_path, clips):
    whole, half = (MAKERS[family](tmp_path / precision, precision=precision) for precision in ("fp32", "bf16"))
    heads = {id(tensor) for head in half.heads for tensor in half.model.get_submodule(head).parameters()}
    sizes = [sum(p.nbytes for p in base.model.parameters() if id(p) not in heads) for base in (whole, half)]
    assert {p.dtype for p in half.model.parameters() if id(p) not in heads} == {torch.bfloat16}
    assert sizes[1] < 0.6 * sizes[0]
    item = whole.encode(question(choices=(" no", " yes"), audio=clips[0] if family == "whisper" else ""))
    losses = [float(base.loss(base.model, base.collate([item]))[0]) for base in (whole, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert load_base(tmp_path / "bf16", precision="fp32").model.dtype == torch.float32


def test_the_heads_of_an_encoder_learn_in_single_precision_whatever_the_bases(tmp_path):
    base = encoder_base(tmp_path / "b", precision="bf16")
    attach(base.model, load_module("method", "lora").Method(), 0, base.heads)
    heads = head_parameters(base.model, base.heads)
    assert {parameter.dtype for parameter in heads.values()} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in heads.items()}
    optimizer = torch.optim.AdamW(heads.values(), lr=1e-6)
    item = base.encode(question("acg tta", " yes", choices=(" no", " yes")))
    base.loss(base.model, base.collate([item]))[0].backward()
    optimizer.step()
    assert not any(torch.equal(before[name], parameter) for name, parameter in heads.items())


def test_what_a_domain_is_written_in_must_be_known_to_the_tokenizer(encoder):
    check_readable(encoder, "lncrna", ["acg tta gca", "acg nnn"])
    told = r"the tokenizer does not know what speech is written in \(100% unknown tokens\); expected at most 50%"
    with pytest.raises(InputError, match=told):
        check_readable(encoder, "speech", ["the child says", "hm"])


def test_a_local_folder_is_prepared_without_pickles_or_code(tmp_path):
    save(tmp_path / "source", "causal", llama(300), text_tokenizer())
    for name in ("pytorch_model.bin", "modeling_evil.py"):
        (tmp_path / "source" / name).write_text("x")
    prepare_folder(tmp_path / "source", "b", entry("causal"), tmp_path / "b")
    assert {p.suffix for p in (tmp_path / "b").iterdir()} <= {".json", ".safetensors", ".txt", ".md"}
    load_base(tmp_path / "b")


def test_random_folding_weights_stay_marked_as_random(tmp_path):
    source = save_folding_model(tmp_path / "source", weights="random")
    prepare_folder(source, "fold", entry("folding"), tmp_path / "fold")
    with pytest.raises(InputError, match="random"):
        check_folder(tmp_path / "fold", allow_random=False)


@pytest.mark.parametrize("family", registered_names("family"))
def test_a_familys_name_is_that_of_its_file(family):
    assert family_class(family).family == family
