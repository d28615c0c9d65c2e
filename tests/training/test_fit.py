"""The loop: exact resume, losses normalised over the whole step, clean stops."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from loratory.errors import InputError
from loratory.training import checkpoint
from loratory.training.fit import Loss, MicroBatch, TrainingHooks, TrainingStopped, train_model
from loratory.training.schedule import Training

RECIPE = Training(steps=12, learning_rate=0.05, weight_decay=0.1, save_every=5)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)).train()


def batch(step, rows=6):
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(step))
    return {"x": x}


def run(
    folder,
    net=None,
    recipe=RECIPE,
    micro=lambda step: [MicroBatch("t", batch(step))],
    stop_at=None,
    stop=signal.SIGTERM,
    **options,
):
    net = net or model()

    def loss(m):
        total = (net(m.batch["x"]).squeeze(1) - m.batch["x"].sum(1)).square().sum()
        return Loss(total, len(m.batch["x"]))

    def micro_batches(step):
        if stop_at is not None and step == stop_at:
            os.kill(os.getpid(), stop)
        return micro(step)

    curve = train_model(dict(net.named_parameters()), micro_batches, loss, recipe, 3, folder, "test", **options)
    return net, curve


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def losses(curve):
    return [(point["step"], point["loss"], point["targets"]) for point in curve]


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, as in a terminal; jobs in the background may be started such that it does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("ctrl_c")
def test_training_goes_on_bit_for_bit_after_sigterm_or_ctrl_c(tmp_path, stop):
    whole, curve = run(tmp_path / "whole")
    with pytest.raises(TrainingStopped) as stopped:
        run(tmp_path / "parts", stop_at=7, stop=stop)
    assert stopped.value.code == 143
    resumed, again = run(tmp_path / "parts")
    assert torch.equal(weights(resumed), weights(whole))
    assert losses(again) == losses(curve)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    def micro(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, micro=micro)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_goes_on_bit_for_bit_after_kill(tmp_path):
    whole, curve = run(tmp_path / "whole")
    script = textwrap.dedent(f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        import os, signal, test_fit as t
        def micro(step):
            if step == 8: os.kill(os.getpid(), signal.SIGKILL)
            return [t.MicroBatch("t", t.batch(step))]
        t.run({str(tmp_path / "parts")!r}, micro=micro)
    """)
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint.load_checkpoint(tmp_path / "parts", dict(model().named_parameters()), optimizer(), {})[0] == 5
    resumed, again = run(tmp_path / "parts")
    assert torch.equal(weights(resumed), weights(whole))
    assert losses(again) == losses(curve)


def optimizer():
    return torch.optim.AdamW(model().parameters())


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = run(tmp_path / "a")
    again, _ = run(tmp_path / "a", micro=lambda step: pytest.fail("trained again"))
    assert torch.equal(weights(first), weights(again))


def test_one_batch_equals_its_parts(tmp_path):
    """Unequal micro-batches of one task are normalised by the targets of the whole step."""

    def parts(step):
        whole = batch(step)
        return [
            MicroBatch("t", {"x": whole["x"][:1]}, 1),
            MicroBatch("t", {"x": whole["x"][1:]}, 5),
        ]

    together, _ = run(tmp_path / "a", net=model().eval())
    apart, _ = run(tmp_path / "b", net=model().eval(), micro=parts)
    torch.testing.assert_close(weights(apart), weights(together), rtol=1e-4, atol=1e-6)


def test_a_micro_batch_of_other_targets_than_were_announced_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match="t has 6 targets, and 4 were announced"):
        run(tmp_path, micro=lambda step: [MicroBatch("t", batch(step), 6), MicroBatch("t", batch(step), 4)][::-1])


def test_tasks_weigh_alike_whatever_their_sizes(tmp_path):
    def both(step):
        return [MicroBatch("small", batch(step, 2)), MicroBatch("large", batch(step, 50))]

    _, mixed = run(tmp_path / "m", net=model().eval(), micro=both)
    _, small = run(tmp_path / "s", net=model().eval(), micro=lambda step: both(step)[:1])
    _, large = run(tmp_path / "l", net=model().eval(), micro=lambda step: both(step)[1:])
    assert mixed[0]["loss"] == pytest.approx((small[0]["loss"] + large[0]["loss"]) / 2)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError, match="the loss is nan at step 0; fix: lower the learning rate"):
        run(tmp_path, micro=lambda step: [MicroBatch("t", {"x": torch.full((2, 4), torch.nan)})])


def test_the_rate_rises_then_falls_to_nothing():
    recipe = Training(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.01


class RateRecord(TrainingHooks):
    """AdamW in two groups, the second of four times the rate; remembers the rates of each step."""

    def create_optimizer(self, parameters, recipe):
        slow, *fast = parameters.values()
        self.optimizer = torch.optim.AdamW([{"params": [slow]}, {"params": fast, "ratio": 4.0}])
        self.rates = []
        return self.optimizer

    def after_step(self, step):
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])


def test_every_step_is_taken_at_its_own_rate_and_each_group_at_its_ratio_of_it(tmp_path):
    hooks = RateRecord()
    run(tmp_path, hooks=hooks)
    assert hooks.rates == [[RECIPE.learning_rate_at(step), 4 * RECIPE.learning_rate_at(step)] for step in range(12)]


class Descent(TrainingHooks):
    """Plain gradient descent, whose step is as long as the gradient."""

    def create_optimizer(self, parameters, recipe):
        return torch.optim.SGD(parameters.values(), lr=recipe.learning_rate)


@pytest.mark.parametrize(("clip", "clipped"), [(1e-3, True), (1e3, False)])
def test_a_gradient_longer_than_clip_is_cut_to_it_and_a_shorter_one_is_not(clip, clipped, tmp_path):
    net = model()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    recipe = Training(steps=1, learning_rate=1.0, warmup=0, decay="constant", clip=clip, save_every=0)
    run(tmp_path, net, recipe, hooks=Descent())
    moved = float((torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm())
    assert (moved == pytest.approx(clip, rel=1e-3)) == clipped and moved > 1e-4


def test_weight_decay_is_that_of_the_recipe(tmp_path):
    trained = {}
    for decay in (0.0, 0.5):
        net = model()
        recipe = Training(steps=1, learning_rate=0.1, warmup=0, decay="constant", weight_decay=decay, save_every=0)
        run(tmp_path / str(decay), net, recipe)
        trained[decay] = list(net.parameters())
    for without, decayed, start in zip(trained[0.0], trained[0.5], model().parameters()):
        torch.testing.assert_close(decayed, without - 0.1 * 0.5 * start)


def test_the_curve_holds_the_rate_of_each_step(tmp_path):
    _, curve = run(tmp_path)
    assert [point["scheduled_rate"] for point in curve] == [RECIPE.learning_rate_at(step) for step in range(12)]
