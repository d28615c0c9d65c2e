"""Saved mixtures: opened as they were saved, or refused in one line with the base left bare."""

import json
import shutil

import pytest
import torch
from models import causal_base, opinionated, trained_adapter
from mutants import mutate_folder
from safetensors.torch import load_file, save_file

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.methods.xlora import Mixer
from loratory.mixers.store import GATE, MANIFEST, open_mixture, save_mixture

IDS = torch.arange(18).view(2, 9) % 40 + 3


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A base and the folder of a mixture on it."""
    folder = tmp_path_factory.mktemp("study")
    base, folders = causal_base(folder / "base", ears=False), {}
    for index, name in enumerate("ab"):
        folders[name] = folder / name
        deltas.save_adapter(folders[name], trained_adapter(base.model, Method(rank=2 + index), index), causal=True)
    given = {name: deltas.load_adapter(path) for name, path in folders.items()}
    mixture = opinionated(Mixture(base.model, given, Mixer(depth=2, width=16)))
    save_mixture(folder / "mixture", mixture, "xlora", folders, {"base": "tiny", "base_sha256": base.fingerprint})
    mixture.remove_experts()
    return base, folder / "mixture"


@pytest.fixture
def saved(study, tmp_path):
    return study[0], shutil.copytree(study[1], tmp_path / "mixture")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": ["a", "../a"]}, r"unknown expert \(\.\./a\); expected one of b"),
        ({"experts": ["a", "a"]}, r"unknown expert \(a\); expected one of b"),
        ({"experts": ["a", "x" * 5000]}, "unknown expert"),
        ({"experts": {"a": "b"}}, r"experts: wrong value .*; expected a list"),
        ({"experts": []}, "experts"),
        ({"mixer": "../evil"}, "unknown mixer"),
        ({"options": {"depth": "2"}}, "options: depth: wrong value"),
        ({"options": {"dept": 2}}, "did you mean `depth`"),
        ({"options": []}, "options: wrong value"),
        ({"base_sha256": 5}, "base_sha256: wrong value"),
        ({"base_sha256": "0" * 64}, "the mixture belongs to another base"),
        (
            {"options": {"depth": 1}},
            r"gate\.safetensors:tokens\.0\.bias: the gate does not fit \(\(16,\) float32\); expected \(28,\)",
        ),
    ],
)
def test_a_manifest_that_does_not_describe_its_folder_is_refused_by_name(saved, change, message):
    base, folder = saved
    given = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(given | change))
    before = [name for name, _ in base.model.named_modules()]
    with pytest.raises(InputError, match=message):
        open_mixture(folder, base)
    assert [name for name, _ in base.model.named_modules()] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gate: gate.pop("tokens.0.bias"), r"tokens\.0\.bias: the gate does not fit \(no such tensor\)"),
        (
            lambda gate: gate.update({"x": torch.ones(1)}),
            r"x: the gate does not fit \(\(1,\) float32\); expected no such tensor",
        ),
        (lambda gate: gate["tokens.0.bias"].fill_(torch.nan), "a weight is NaN or infinite"),
    ],
)
def test_a_gate_of_other_tensors_is_refused_by_name(saved, change, message):
    base, folder = saved
    gate = load_file(folder / GATE)
    change(gate)
    save_file(gate, folder / GATE)
    with pytest.raises(InputError, match=message):
        open_mixture(folder, base)


def test_an_expert_linked_from_elsewhere_is_refused(saved, tmp_path):
    base, folder = saved
    (folder / "experts" / "a").rename(tmp_path / "elsewhere")
    (folder / "experts" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link leads out of the folder"):
        open_mixture(folder, base)


@torch.no_grad()
def test_a_mutated_mixture_is_refused_or_opened_and_the_base_is_left_bare(study, tmp_path):
    base, folder = study
    before, opened = [name for name, _ in base.model.named_modules()], 0
    for seed in range(40):
        mutate_folder(folder, tmp_path / "mutant", seed)
        try:
            ours = open_mixture(tmp_path / "mutant", base)
        except InputError:
            pass
        else:
            opened += 1
            assert ours(input_ids=IDS).logits.isfinite().all()
            ours.remove_experts()
        assert [name for name, _ in base.model.named_modules()] == before
        shutil.rmtree(tmp_path / "mutant")
    assert 3 < opened < 30
