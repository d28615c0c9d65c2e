"""No run goes on from a checkpoint that is damaged or was made with something else, and each says so in one line."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from test_fit import batch, losses, model, run, weights

from loratory.training import checkpoint
from loratory.training.checkpoint import BEFORE, NAME
from loratory.training.fit import MicroBatch
from loratory.training.schedule import Training

RECIPE = Training(steps=9, learning_rate=0.05, weight_decay=0.1, save_every=2)
MADE_WITH = {"code": "a1", "data": ["d1"], "versions": {"torch": "2.13", "peft": "0.21"}, "entry": {"rank": 8}}


class Killed(Exception):
    pass


def trained(folder, kill_at=None, made_with=MADE_WITH, steps=None):
    """A training that is killed before a step; the numbers of the steps that it took go to `steps`."""

    def micro(step):
        if step == kill_at:
            raise Killed
        if steps is not None:
            steps.append(step)
        return [MicroBatch("t", batch(step))]

    return run(folder, recipe=RECIPE, micro=micro, made_with=made_with)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    net, curve = trained(tmp_path_factory.mktemp("whole"))
    return weights(net), losses(curve)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The folder of a training that was killed in its eighth step: checkpoints of six and of four steps."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        trained(folder, kill_at=7)
    return folder


@pytest.fixture
def folder(killed, tmp_path) -> Path:
    return shutil.copytree(killed, tmp_path / "run")


def resumed(folder, undisturbed, **options) -> int:
    """The first step that the next run of the same training takes; its outcome is that of an undisturbed one."""
    steps: list[int] = []
    net, curve = trained(folder, steps=steps, **options)
    assert torch.equal(weights(net), undisturbed[0]) and losses(curve) == undisturbed[1]
    return [*steps, RECIPE.steps][0]


def flip_bit(path, position, bit) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def positions(path) -> list[int]:
    """Two dozen bytes of the header, the same of the tensors, and the ends of both."""
    size, draw = path.stat().st_size, random.Random(0)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    drawn = [draw.randrange(header) for _ in range(24)] + [draw.randrange(header, size) for _ in range(24)]
    return [0, 2, 7, 8, header - 1, header, size - 1, *drawn]


def test_a_sound_checkpoint_is_gone_on_from_without_a_word(folder, undisturbed, capsys):
    assert resumed(folder, undisturbed) == 6
    assert "put aside" not in capsys.readouterr().out


def test_a_flipped_bit_anywhere_is_noticed_and_costs_the_steps_between_two_saves(killed, tmp_path, undisturbed):
    for number, position in enumerate(positions(killed / NAME)):
        flip_bit(shutil.copytree(killed, tmp_path / f"{number}") / NAME, position, number % 8)
        assert resumed(tmp_path / f"{number}", undisturbed) == 4, position


def test_of_a_thousand_damaged_checkpoints_none_is_said_to_be_sound(killed, tmp_path):
    content, path, draw = (killed / NAME).read_bytes(), tmp_path / NAME, random.Random(1)
    path.write_bytes(content)
    assert checkpoint.refusal_reason(path, MADE_WITH) == ""
    for position in draw.sample(range(len(content)), 500):
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        for damaged in (changed, content[:position]):
            path.write_bytes(damaged)
            assert checkpoint.refusal_reason(path, MADE_WITH).startswith("is damaged"), position


def test_a_truncated_checkpoint_is_refused_by_name_at_whatever_length(killed, tmp_path, undisturbed, capsys):
    size = (killed / NAME).stat().st_size
    for length in (0, 1, 7, 8, 9, 100, 1000, size // 2, size - 64, size - 1):
        copy = shutil.copytree(killed, tmp_path / f"{length}")
        os.truncate(copy / NAME, length)
        assert resumed(copy, undisturbed) == 4, length
        [line] = [line for line in capsys.readouterr().out.splitlines() if "put aside" in line]
        why = "is damaged: its checksum is not that of its content"
        assert line == f"{copy / NAME} {why}; put aside: training goes on from {BEFORE}, after step 4"


def test_a_checkpoint_that_grew_is_refused(folder, undisturbed):
    with open(folder / NAME, "ab") as stream:
        stream.write(b"\0")
    assert resumed(folder, undisturbed) == 4


def test_with_both_checkpoints_damaged_training_begins_anew(folder, undisturbed, capsys):
    for name in (NAME, BEFORE):
        flip_bit(folder / name, -5, 3)
    assert resumed(folder, undisturbed) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "put aside" in line]
    assert line.startswith(f"{folder / NAME} is damaged") and line.endswith("put aside: training begins anew")


def test_the_sound_one_outlives_the_damaged_one(folder, undisturbed):
    """What was gone on from is not replaced by what was refused."""
    flip_bit(folder / NAME, -5, 3)
    with pytest.raises(Killed):
        trained(folder, kill_at=5)
    assert resumed(folder, undisturbed) == 4


def test_what_other_programs_wrote_is_refused(folder, undisturbed):
    checkpoint.save_file({"parameter/0.weight": torch.zeros(8, 4)}, folder / NAME)
    (folder / BEFORE).write_bytes(b"{}")
    assert resumed(folder, undisturbed) == 0


CHANGES = {  # what is said of it: the change
    "code (a1 → b2)": {"code": "b2"},
    "data (['d1'] → ['d2'])": {"data": ["d2"]},
    "versions.peft (0.21 → 0.22)": {"versions": {"torch": "2.13", "peft": "0.22"}},
    "entry.rank (8 → 16)": {"entry": {"rank": 16}},
    "code (a1 → None)": {"code": None},
    "device (None → cuda)": {"device": "cuda"},
}


@pytest.mark.parametrize("said", CHANGES, ids=lambda said: said.split(" → ")[0])
def test_a_checkpoint_of_anything_else_is_put_aside_and_the_line_says_what_differs(said, folder, undisturbed, capsys):
    changed = MADE_WITH | CHANGES[said]
    assert resumed(folder, undisturbed, made_with=changed) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "put aside" in line]
    assert line == f"{folder / NAME} was made with other {said}; put aside: training begins anew"
    assert resumed(folder, undisturbed, made_with=changed) == RECIPE.steps, "its own checkpoint is gone on from"


def test_many_differences_are_one_short_line(folder, capsys):
    trained(folder, made_with={f"fact{i}": "x" * 500 for i in range(50)})
    [line] = [line for line in capsys.readouterr().out.splitlines() if "put aside" in line]
    assert "and 52 more" in line and len(line) < 500


KILLS = {"save_file": 4, "read_seal": 4, "replace": 2}  # killed at the third call: the step of the last whole file


def train_until_killed(when: str, folder: str) -> None:
    """While writing beside, while sealing, or between the old one's move and the new one's."""
    place, calls = os if when == "replace" else checkpoint, []
    function = getattr(place, when)

    def call(*given):
        calls.append(1)
        if len(calls) == 3:
            written = Path(given[1] if when == "save_file" else given[0])
            written.write_bytes(written.read_bytes()[:700] if written.is_file() else b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given)

    setattr(place, when, call)
    trained(folder)


def test_a_kill_while_a_checkpoint_is_written_is_harmless(tmp_path, undisturbed):
    script = textwrap.dedent(f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        import os, test_checkpoint
        test_checkpoint.trained("{tmp_path}/first")  # what a first training loads, the children have too
        for when in test_checkpoint.KILLS:
            child = os.fork()
            if not child:
                try:
                    test_checkpoint.train_until_killed(when, f"{tmp_path}/{{when}}")
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9, when
    """)
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork would wait for its parent's threads
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stderr
    for when, left in KILLS.items():
        assert resumed(tmp_path / when, undisturbed) == left, when


def test_a_checkpoint_takes_the_place_of_the_one_before_it(folder):
    assert [checkpoint.read_facts(folder / name)["step"] for name in (NAME, BEFORE)] == [6, 4]
    assert checkpoint.read_facts(folder / NAME)["made_with"] == MADE_WITH


def test_a_run_with_other_facts_has_another_digest():
    assert checkpoint.facts_digest(a=1, b=2) == checkpoint.facts_digest(b=2, a=1)
    assert checkpoint.facts_digest(a=1) != checkpoint.facts_digest(a=2)


def test_a_checkpoint_is_loaded_onto_what_it_was_saved_from(folder):
    net = model()
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values())
    step, curve = checkpoint.load_checkpoint(folder, parameters, optimizer, {}, MADE_WITH)
    assert step == 6 == len(curve) and set(optimizer.state) == set(parameters.values())
