"""What a study trained as a folder for others, with a model card: as PEFT and hubs have it, or as vLLM and LoRAX do.

vLLM and LoRAX scale every layer by `lora_alpha / r` of the whole adapter, whatever PEFT's patterns say, and take
neither biases nor modules trained whole; LoRAX stacks a layer type over all layers of the model. What differs from
layer to layer is therefore brought to one rank and one scale, by rows and columns of zeros and by a factor of B.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch.nn.functional import pad

from loratory.adapters.deltas import CONFIG, RUN, Adapter, LowRank, copy_adapter, load_adapter, save_adapter
from loratory.bases.checks import read_object
from loratory.bases.core import MANIFEST as BASE
from loratory.bases.core import load_base
from loratory.bases.options import PACKED
from loratory.data.files import atomic_write, write_json
from loratory.errors import InputError
from loratory.mixers.published import save_published
from loratory.mixers.store import EXPERTS, MANIFEST, open_mixture
from loratory.model_card import write_card
from loratory.registry import is_spoken

HIGHEST_RANK = {"vllm": 512, "lorax": 128}  # of vLLM's `--max-lora-rank`, and of LoRAX's kernels
FORMS = ("peft", *HIGHEST_RANK)
LAYER = re.compile(r"^(.*?\.)(\d+)(\..*)$")  # of a module's name, with its first number


@dataclass(frozen=True)
class Trained:
    """A trained adapter or mixture among the results of its study.

    Attributes:
        folder: `…/seed{n}`. results: of the study. system: as metrics call it. adapters: {domain: its adapter}.
        facts: `run.json` or `mixture.json`. base: `base.json`.
    """

    folder: Path
    results: Path
    system: str
    adapters: dict[str, str]
    facts: dict
    base: dict

    @property
    def base_folder(self) -> Path:
        return self.results / "bases" / self.facts["base"]

    @property
    def is_mixture(self) -> bool:
        return (self.folder / MANIFEST).is_file()


def export_trained(source: Path | str, target: Path | str, form: str) -> None:
    """Writes the folder `target`, whole or not at all.

    Args:
        source: `…/adapters/{domain}/{base}/{adapter}/seed{n}` or `…/mixtures/{mixture}/seed{n}` of a study's results.
        form: one of FORMS.

    Raises:
        InputError: nothing of the kind is there, `target` exists, or this form cannot express what was trained.
    """
    trained, target = find_trained(Path(source)), Path(target)
    if target.exists():
        raise InputError(target, "the folder exists", fix="name another, or remove it")
    with atomic_write(target) as aside:
        aside.mkdir(parents=True)
        if trained.is_mixture:
            export_mixture(trained, aside, form)
        else:
            export_adapter(trained, aside, form)
        name_base(aside, trained.base)
        write_card(aside, trained, form)


def find_trained(folder: Path) -> Trained:
    """Raises:
    InputError: the folder is none of a study's results.
    """
    folder = folder.resolve()
    expected = "results/adapters/DOMAIN/BASE/ADAPTER/seed0 or results/mixtures/MIXTURE/seed0"
    if folder.joinpath(MANIFEST).is_file():
        facts, results, adapters = read_object(folder / MANIFEST), folder.parents[2], {}
        system, adapters = folder.parent.name, dict(facts.get("adapters", {}))
    elif folder.joinpath(RUN).is_file() and len(folder.parents) > 5:
        facts, results = read_object(folder / RUN), folder.parents[4]
        domain, adapter = folder.parents[2].name, folder.parent.name
        system, adapters = f"{adapter}@{domain}", {domain: adapter}
    else:
        raise InputError(folder, "neither a trained adapter nor a trained mixture", expected=expected)
    manifest = results / "bases" / str(facts.get("base")) / BASE
    if not manifest.is_file():
        raise InputError(manifest, "no such file", expected=f"the results around {expected}", reason="missing")
    base = read_object(manifest)
    if base.get("weights_sha256") != facts.get("base_sha256"):
        raise InputError(manifest, "what is exported was trained on another base", fix="run the study again")
    return Trained(folder, results, system, adapters, facts, base)


def export_adapter(trained: Trained, folder: Path, form: str) -> None:
    """Raises:
    InputError: the method's change has no low rank, or the engine cannot load it.
    """
    adapter = load_adapter(trained.folder)
    if not adapter.deltas or adapter.dense or adapter.own:
        what, other = "a change without a low rank is no LoRA", next(iter([*adapter.dense, *adapter.own]), None)
        method = trained.facts["run_info"]["peft_config"]["method"]
        fix = "train it with `export_rank`, if it has that option"
        raise InputError(trained.folder, f"{what}, and `{method}` makes such", other, "LoRA-like changes", fix)
    if form == "peft":
        folder.rmdir()
        copy_adapter(trained.folder, folder)
        return
    check_servable(trained, adapter, form)
    assert adapter.config  # as it has changes of low rank
    deltas = one_rank(fill_layers(adapter.deltas, trained.base_folder) if form == "lorax" else adapter.deltas)
    served = replace(adapter, deltas=deltas)
    save_adapter(folder, served, causal=True, transposed=adapter.config.fan_in_fan_out)


def check_servable(trained: Trained, adapter: Adapter, form: str) -> None:
    """Raises:
    InputError: vLLM or LoRAX would not load the adapter, or not as it was trained.
    """
    highest, rank = HIGHEST_RANK[form], max(delta.rank for delta in adapter.deltas.values())
    convolutions = [name for name, delta in adapter.deltas.items() if delta.kernel > 1]
    fix, spoken = "export it `--for peft`", next(filter(is_spoken, trained.adapters), None)
    for what, value, expected in (
        ("its base is no causal language model", trained.base["family"], "causal"),
        ("what it reads is audio", spoken, "text"),
        ("modules were trained whole", next(iter(adapter.heads), None), "low-rank changes alone"),
        ("convolutions were adapted", next(iter(convolutions), None), "linear layers alone"),
        (f"the rank is above {form}'s highest", rank if rank > highest else None, f"at most {highest}"),
    ):
        if value is not None and value != expected:
            raise InputError(trained.folder, what, value, expected, fix)


def one_rank(deltas: dict[str, LowRank]) -> dict[str, LowRank]:
    """The same changes at the highest of their ranks and at the scale that most of them have."""
    scales = [delta.scale for delta in deltas.values()]
    rank, scale = max(delta.rank for delta in deltas.values()), max(set(scales), key=scales.count)

    def padded(delta: LowRank) -> LowRank:
        more = rank - delta.rank
        return LowRank(pad(delta.A, (0, 0, 0, more)), pad(delta.B * (delta.scale / scale), (0, more)), scale)

    return {name: padded(delta) for name, delta in deltas.items()}


def fill_layers(deltas: dict[str, LowRank], base_folder: Path) -> dict[str, LowRank]:
    """The changes, and changes by zero of the layers between that have none, as LoRAX wants a type in every layer."""
    layers = range(read_object(base_folder / "config.json")["num_hidden_layers"])
    filled = dict(deltas)
    for name, delta in deltas.items():
        if parts := LAYER.match(name):
            empty = replace(delta, A=delta.A * 0, B=delta.B * 0)
            for place in layers:
                filled.setdefault(f"{parts[1]}{place}{parts[3]}", empty)
    return filled


def export_mixture(trained: Trained, folder: Path, form: str) -> None:
    """Raises:
    InputError: the mixture is no X-LoRA that PEFT can express, or is to be served by an engine without X-LoRA.
    """
    if form != "peft":
        fix = "export it `--for peft`, or its experts one by one"
        raise InputError(
            trained.folder, f"{form} loads single adapters and no mixture", trained.facts["mixer"], fix=fix
        )
    held = trained.base.get("precision", "fp32")
    base = load_base(trained.base_folder, precision="bf16" if held in PACKED else held)
    mixture = open_mixture(trained.folder, base)
    save_published(folder, mixture, {name: f"{EXPERTS}/{name}" for name in mixture.names}, trained.folder)
    for name in mixture.names:
        copy_adapter(trained.folder / EXPERTS / name, folder / EXPERTS / name)
        name_base(folder / EXPERTS / name, trained.base)
    write_json(folder / MANIFEST, trained.facts)


def name_base(folder: Path, base: dict) -> None:
    """Lets the folder's config say which base it is for: a repository of a hub at a commit, or this study's name."""
    named = {
        "base_model_name_or_path": base["origin"] if base["revision"] else base["name"],
        "revision": base["revision"],
    }
    write_json(folder / CONFIG, read_object(folder / CONFIG) | named)
