"""Federated LoRA: what averaging does and does not do, who is left out, and what goes over the wire."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.common import FitIns, Parameters, ndarrays_to_parameters
from flwr.server import SimpleClientManager

from loratory.adapters import core
from loratory.errors import InputError
from loratory.lifecycle import client, federation
from loratory.lifecycle.procedures.federated import Procedure
from loratory.training.fit import TrainingStopped

PLAIN, FFA = "fedavg_lora", "ffa_lora"


def constant(steps, rate=0.05, tokens=24, save_every=0) -> dict:
    """A schedule of one rate, whose gradients are not cut."""
    schedule = {"steps": steps, "batch_tokens": tokens, "learning_rates": [rate], "save_every": save_every}
    return schedule | {"warmup": 0.0, "decay": "constant", "clip": 1e9}


@pytest.fixture
def federate(open_room):
    """(arm, clients' places of examples, options of the procedure, of the room) -> its training."""

    def make(arm=FFA, places=((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)), room=None, training=None, **options):
        room = room or open_room("llama", training=training or constant(4))
        options = {"local_steps": 2, "optimizer": "sgd", "private_batch": 2} | options
        items = [[room.base.items[place] for place in own] for own in places]
        return Procedure(**options).federations(None, room, items)[arm]

    return make


def learn(training) -> tuple[dict, dict]:
    """(the adapter's tensors, those that are fixed among them; measures) after all rounds."""
    for arm in training.iterate_arms():
        assert not any(module.training for module in arm.model.modules()), "nothing drops out of what it is asked"
        return adapter_tensors(arm.model), dict(arm.measures)
    raise AssertionError


def adapter_tensors(model) -> dict:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, core.AdaptedLinear)}
    return {f"{name}.{key}": t.detach().clone() for name, m in layers.items() for key, t in m.tensors.items()}


def updates(tensors, scale=1.0) -> dict:
    return {name[:-2]: scale * tensors[f"{name[:-2]}.B"] @ tensors[name] for name in tensors if name.endswith(".A")}


def same(some, others) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def largest_difference(some, others) -> float:
    return max(float((some[name] - others[name]).abs().max()) for name in some)


def note_answers(monkeypatch) -> list:
    """[(round's first step, client, its tensors)] of what clients have learnt, filled while they do."""
    seen, take = [], client.AdapterClient.take_steps

    def note(self, steps):
        losses = take(self, steps)
        seen.append((steps.start, self.number, adapter_tensors(self.base.model)))
        return losses

    monkeypatch.setattr(client.AdapterClient, "take_steps", note)
    return seen


# What averaging is.


@pytest.mark.parametrize("family", ["llama", "whisper"])
def test_a_is_the_same_to_the_bit_on_all_clients_in_all_rounds_and_after(federate, open_room, monkeypatch, family):
    seen = note_answers(monkeypatch)
    training = federate(room=open_room(family, training=constant(4)))
    with training.attached_adapter():
        first = {name: t for name, t in adapter_tensors(training.model).items() if name.endswith(".A")}
    last, _ = learn(training)
    assert len(seen) == 2 * 3 and first
    for found in [*(tensors for *_, tensors in seen), last]:
        assert all(torch.equal(found[name], a) for name, a in first.items())
    assert any(last[name].any() for name in last if name.endswith(".B"))


def test_ffa_averages_updates_exactly_and_the_factors_of_a_plain_lora_do_not(federate, monkeypatch):
    errors = {}
    for arm in (FFA, PLAIN):
        seen = note_answers(monkeypatch)
        found, _ = learn(federate(arm, ((0,), (1, 2, 3), (4, 5, 6, 7, 8)), training=constant(2, rate=2.0)))
        own = [updates(tensors) for *_, tensors in seen[-3:]]
        weights = [len(items) / 9 for items in ((0,), (1, 2, 3), (4, 5, 6, 7, 8))]
        mean = {name: sum(w * of[name] for w, of in zip(weights, own)) for name in own[0]}
        errors[arm] = largest_difference(updates(found), mean)
        monkeypatch.undo()
    assert errors[FFA] < 1e-6
    assert errors[PLAIN] > 1e-4, "mean(B) mean(A) is not mean(B A)"


def test_the_mean_weighs_by_examples_and_weights_sum_to_one(federate):
    training = federate(places=((0,), (1, 2, 3)))
    with training.attached_adapter():
        strategy = federation.CheckedFedAvg(training, "")
        answers = []
        for number, value in enumerate((1.0, 5.0)):
            said = ndarrays_to_parameters([np.full(p.shape, value, np.float32) for p in training.trained.values()])
            proxy = type("Proxy", (), {"cid": str(number)})()
            answers.append((proxy, client.FitRes(client.FINE, said, len(training.items[number]), {"loss": 0.0})))
        strategy.numbers, strategy.round = {"0": 0, "1": 1}, {"asked": [0, 1]}
        found = [strategy.aggregate_fit(1, order, [])[0] for order in (answers, answers[::-1])]
        mean = client.unpack_tensors(found[0], training.trained)
    assert {float(t.unique()) for t in mean.values()} == {4.0}
    assert found[0].tensors == found[1].tensors, "the order in which clients answer is none of its business"


def test_the_order_of_clients_changes_no_bit(federate, monkeypatch):
    found, _ = learn(federate(PLAIN))
    monkeypatch.setattr(SimpleClientManager, "all", lambda self: dict(reversed(self.clients.items())))
    turned, _ = learn(federate(PLAIN))
    assert same(found, turned)


def central_step(training, room, places, steps=1, optimizer=torch.optim.SGD, rate=0.05) -> dict:
    """Steps by hand on all examples together, of what the training trains."""
    with training.attached_adapter():
        made = optimizer(training.trained.values(), lr=rate)
        room.base.model.train()
        for _ in range(steps):
            total, targets = room.base.loss(room.base.model, room.base.collate([room.base.items[i] for i in places]))
            (total / targets).backward()
            made.step()
            made.zero_grad()
        return adapter_tensors(room.base.model)


@pytest.mark.parametrize("family", ["llama", "whisper"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_client_and_one_step_are_a_central_step_with_a_frozen(federate, open_room, optimizer, family):
    room = open_room(family, training=constant(1))
    training = federate(places=((0, 1, 2, 3),), room=room, optimizer=optimizer)
    found, _ = learn(training)
    made = torch.optim.SGD if optimizer == "sgd" else lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0)
    expected = central_step(training, room, (0, 1, 2, 3), optimizer=made)
    assert largest_difference(found, expected) < 1e-6 and any(found[name].any() for name in found if name[-1] == "B")


def test_one_client_in_one_round_is_a_central_training_of_b_alone(federate, open_room):
    room = open_room("llama", training=constant(5))
    training = federate(places=(range(12),), room=room, local_steps=5, optimizer="adamw")
    found, _ = learn(training)
    fixed = replace(room, adapter=AsAdapter(training.method, room.adapter.training))
    for arm in federation.PlainTraining("central", fixed, room.base.items, "adamw").iterate_arms():
        assert same(adapter_tensors(arm.model), found)


class AsAdapter:
    """A method as a config entry has it."""

    def __init__(self, method, training):
        self.method, self.training = method, training

    def __getattr__(self, name):
        return getattr(self.method, name)


@pytest.mark.parametrize("arm", [FFA, PLAIN])
@pytest.mark.parametrize("places", [((0, 1, 2, 3), (4, 5, 6, 7)), ((0,), (1, 2, 3), (4, 5))], ids=["equal", "unequal"])
def test_one_step_of_each_client_is_one_step_on_the_union(federate, open_room, arm, places):
    room = open_room("llama", training=constant(1))
    training = federate(arm, places, room=room)
    found, _ = learn(training)
    expected = central_step(training, room, [place for own in places for place in own])
    assert largest_difference(found, expected) < 1e-6 and any(found[name].any() for name in found if name[-1] == "B")


def test_alpha_is_a_rate_of_sgd(federate, open_room):
    """(α, η) and (c α, η / c²) have the same updates; the same α with another η has not."""
    found = {}
    for alpha, rate in ((4.0, 0.4), (8.0, 0.1), (8.0, 0.4)):
        room = open_room("llama", alpha=alpha, training=constant(4, rate=rate))
        found[alpha, rate] = updates(learn(federate(room=room))[0], alpha / 2)
    first, scaled, other = found.values()
    assert largest_difference(first, scaled) < 1e-6
    assert largest_difference(first, other) > 1e-4


def test_who_is_not_asked_changes_nothing(federate, open_room):
    room = open_room("llama", training=constant(4))
    places = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    training = federate(places=places, room=room, participation=0.4)
    asked = [training.clients_asked(number) for number in (1, 2)]
    assert all(len(each) == 1 for each in asked)
    idle = ({0, 1, 2} - {*asked[0], *asked[1]}).pop()
    other = tuple(own if number != idle else (0, 1, 2) for number, own in enumerate(places))
    found, measures = learn(training)
    assert same(found, learn(federate(places=other, room=room, participation=0.4))[0])
    assert measures["clients lost"] == 0
    busy = tuple(own if number == idle else (0, 1, 2) for number, own in enumerate(places))
    assert not same(found, learn(federate(places=busy, room=room, participation=0.4))[0])


# The wire.


@pytest.mark.parametrize("family", ["llama", "whisper"])
def test_what_goes_over_the_wire_is_b_in_four_bytes_a_number_and_a_head_for_each_tensor(federate, open_room, family):
    room = open_room(family, training=constant(2))
    for arm in (FFA, PLAIN):
        training = federate(arm, room=room)
        with training.attached_adapter() as layers:
            shapes = [tuple(layer.weight.shape) for layer in layers.values()]
        numbers = sum(2 * (out if arm == FFA else out + inner) for out, inner in shapes)
        tensors = len(shapes) * (1 if arm == FFA else 2)
        _, measures = learn(training)
        assert measures["trained numbers"] == numbers
        for way in ("to", "from"):
            beyond = measures[f"bytes {way} a client a round"] - 4 * numbers
            assert 128 * tensors < beyond < 136 * tensors + 100, "an .npy head of 128 bytes, and a few of protobuf"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda own: own[:-1], "tensors instead of"),
        (lambda own: [own[0].repeat(2, 0), *own[1:]], "bytes instead of"),
        (lambda own: [own[0].T.copy(), *own[1:]], "float32 .* instead of float32"),
        (lambda own: [own[0].view(np.int32), *own[1:]], "int32"),
        (lambda own: [np.full_like(own[0], np.nan), *own[1:]], "not finite"),
        (lambda own: [np.full_like(own[0], np.inf), *own[1:]], "not finite"),
    ],
    ids=["fewer", "longer", "turned", "integers", "nan", "infinite"],
)
def test_foreign_tensors_are_refused(federate, tensors, words):
    training = federate()
    with training.attached_adapter():
        own = [p.detach().numpy() for p in training.trained.values()]
        with pytest.raises(client.RefusedTensors, match=words):
            client.unpack_tensors(ndarrays_to_parameters(tensors(own)), training.trained)


def test_pickled_objects_are_not_loaded(federate):
    training = federate()
    with training.attached_adapter():
        packed = client.pack_tensors(training.trained)
        ran = []

        class Bomb:
            def __reduce__(self):
                return ran.append, (1,)

        written = io.BytesIO()
        np.save(written, np.array([Bomb()], dtype=object), allow_pickle=True)
        evil = written.getvalue()
        evil += b"\0" * (len(packed.tensors[0]) - len(evil))
        with pytest.raises(client.RefusedTensors, match="no tensors"):
            client.unpack_tensors(Parameters([evil, *packed.tensors[1:]], packed.tensor_type), training.trained)
    assert ran == []


def test_nothing_is_told_to_anybody():
    from flwr.supercore import telemetry

    assert telemetry.FLWR_TELEMETRY_ENABLED == "0" == os.environ["FLWR_TELEMETRY_ENABLED"]
    assert federation.LOOPBACK == "127.0.0.1"


# Who is left out.


def fail_within_step(one) -> None:
    """Leaves gradients behind."""
    total, _ = one.base.loss(one.base.model, one.base.collate(one.items))
    total.backward()
    raise RuntimeError("the cable is out")


def spoil_numbers(one) -> None:
    with torch.no_grad():
        next(iter(one.trained.values())).fill_(torch.nan)


def break_client(monkeypatch, number, how):
    """What happens to a client when it has learnt."""
    take = client.AdapterClient.take_steps

    def broken(self, steps):
        losses = take(self, steps)
        if self.number == number:
            how(self)
        return losses

    monkeypatch.setattr(client.AdapterClient, "take_steps", broken)


@pytest.mark.parametrize(("how", "reason"), [(fail_within_step, "the cable is out"), (spoil_numbers, "not finite")])
def test_a_client_that_fails_is_left_out_and_the_rest_goes_on_as_if_it_were_not_there(
    federate, open_room, monkeypatch, capsys, how, reason
):
    room = open_room("llama", training=constant(4))
    expected, _ = learn(federate(places=((0, 1, 2, 3), (4, 5, 6, 7)), room=room))
    break_client(monkeypatch, 2, how)
    found, measures = learn(federate(room=room))
    assert same(found, expected) and measures["clients lost"] == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "without client 2" in line]
    assert len(said) == 2 and all(reason in line for line in said)


def test_a_round_in_which_none_is_left_ends_in_one_line(federate, monkeypatch):
    break_client(monkeypatch, 0, fail_within_step)
    line = r"lifecycle.smaller: ffa_lora: no client is left in round 1 \(.*the cable is out"
    with pytest.raises(InputError, match=line) as caught:
        learn(federate(places=((0, 1),)))
    assert "\n" not in str(caught.value)


def test_a_client_with_another_a_or_another_key_is_never_asked(federate, open_room, monkeypatch, capsys):
    room = open_room("llama", training=constant(4))
    expected, _ = learn(federate(places=((0, 1, 2, 3), (4, 5, 6, 7)), room=room))
    ask = client.AdapterClient.get_properties
    for wrong in ({"fixed": "of another seed"}, {"key": "guessed"}):

        def lie(self, ins, wrong=wrong):
            said = ask(self, ins)
            said.properties |= wrong if self.number == 2 else {}
            return said

        monkeypatch.setattr(client.AdapterClient, "get_properties", lie)
        found, measures = learn(federate(room=room))
        assert same(found, expected) and measures["clients lost"] == 1
        assert "another key or another fixed A is refused" in capsys.readouterr().out


def test_another_seed_has_another_a(federate, open_room):
    room = open_room("llama")
    digests = set()
    for seed in (0, 1):
        with federate(room=replace(room, seed=seed)).attached_adapter() as layers:
            digests.add(client.fixed_digest(layers))
    assert len(digests) == 2


# Runs that are repeated, or go on.


@pytest.mark.parametrize("arm", [FFA, PLAIN, "ffa_lora_dp", "fedavg_lora_dp"])
def test_a_killed_run_goes_on_to_the_same_bit_and_a_run_is_the_same_every_time(federate, open_room, monkeypatch, arm):
    parts = {"optimizer": "adamw", "local_steps": 2, "participation": 0.7}
    room = open_room("llama", training=constant(6, save_every=1))
    whole, measures = learn(federate(arm, room=room, **parts))
    again, _ = learn(federate(arm, room=open_room("llama", folder="again", training=constant(6)), **parts))
    assert same(whole, again)
    other = open_room("llama", folder="killed", training=constant(6, save_every=1))

    asked, fit_round = [], federation.Server.fit_round

    def note(self, server_round, timeout, last=3):
        asked.append(server_round)
        if server_round == last:
            raise KeyboardInterrupt
        return fit_round(self, server_round, timeout)

    monkeypatch.setattr(federation.Server, "fit_round", note)
    with pytest.raises(KeyboardInterrupt):
        learn(federate(arm, room=other, **parts))
    monkeypatch.setattr(federation.Server, "fit_round", lambda self, *rest: note(self, *rest, last=None))
    found, counted = learn(federate(arm, room=other, **parts))
    assert same(found, whole) and counted == measures and asked == [1, 2, 3, 3]


def test_a_signal_ends_the_round_and_saves_it(federate, open_room, monkeypatch):
    room = open_room("llama", training=constant(4))
    whole, _ = learn(federate(room=open_room("llama", folder="whole", training=constant(4))))
    monkeypatch.setattr(federation.TerminationSignal, "__bool__", lambda self: True)
    with pytest.raises(TrainingStopped):
        learn(federate(room=room))
    monkeypatch.undo()
    assert same(learn(federate(room=room))[0], whole)


def test_a_client_begins_where_the_server_says(federate):
    training = federate()
    with training.attached_adapter() as layers:
        one = training.make_client(0, layers)
        started = client.pack_tensors(training.trained)
        answers = [one.fit(FitIns(started, {"first": 0, "stop": 2})).parameters.tensors for _ in range(2)]
        assert answers[0] == answers[1] != started.tensors


class OnGpu:
    """A toy base whose batches lie where its model does."""

    def __init__(self, toy):
        self.toy = toy
        toy.model.to("cuda")

    def __getattr__(self, name):
        return getattr(self.toy, name)

    def collate(self, items):
        return {key: tensor.to("cuda") for key, tensor in self.toy.collate(items).items()}

    def training_batch(self, items, draw):
        return self.collate(items)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("arm", [FFA, PLAIN, "ffa_lora_dp", "fedavg_lora_dp"])
def test_a_gpu_learns_the_same_every_time_and_plain_arms_as_a_cpu_does(federate, open_room, arm):
    on_cpu, _ = learn(federate(arm, room=open_room("llama", training=constant(4))))
    found = []
    for folder in ("first", "second"):
        room = open_room("llama", folder=folder, training=constant(4))
        found.append(learn(federate(arm, room=replace(room, base=OnGpu(room.base))))[0])
    assert same(*found) and next(iter(found[0].values())).device.type == "cuda"
    if not arm.endswith("_dp"):  # whose noise is drawn there
        assert largest_difference({name: t.cpu() for name, t in found[0].items()}, on_cpu) < 1e-4
