"""What a study trained as a folder for others, with a model card.

An adapter whose change is a product B A in every layer is written as PEFT and hubs have it, or as an engine loads it
(`engines.py`); a change of any other kind that no input decides, as the whole model. A mixture whose weights are the
same for every token is such an adapter too. X-LoRA is written as PEFT has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from os.path import lexists
from pathlib import Path
from shutil import copyfile

import torch

from loratory import registry
from loratory.adapters.core import Conv1D, linear_layers
from loratory.adapters.deltas import CONFIG, RUN, Adapter, copy_adapter, save_adapter
from loratory.adapters.factors import factor_adapter
from loratory.bases.checks import INDEX, read_object
from loratory.bases.core import CURVE, Base, load_base
from loratory.bases.core import MANIFEST as BASE
from loratory.bases.options import PACKED
from loratory.bases.prepare import COPIED_FILES
from loratory.data.files import atomic_write, check_writable, write_json
from loratory.engines import ENGINES, check_base, fit_to_engine
from loratory.errors import InputError
from loratory.mixers.published import save_published
from loratory.mixers.store import EXPERTS, MANIFEST, has_constant_weights, open_as_adapter, open_mixture
from loratory.model_card import write_card
from loratory.registry import is_spoken
from loratory.training.continued import merge_adapter

MERGED = "merged"  # the form of a whole model
FORMS = ("peft", *ENGINES, MERGED)
NOT_COPIED = {BASE, CURVE, INDEX, "README.md"}  # of the base: what is of its making, or of how its weights are stored


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
        InputError: nothing of the kind is there, `target` exists or lies among the results, or this form cannot
            express what was trained.
    """
    trained, target = find_trained(Path(source)), Path(target)
    check_target(target, trained.results)
    with atomic_write(target) as aside:
        aside.mkdir(parents=True)
        gated = trained.is_mixture and not has_constant_weights(str(trained.facts.get("mixer")))
        write = export_mixture if gated else export_adapter
        write(trained, aside, form)
        if form != MERGED:
            name_base(aside, trained.base)
        write_card(aside, trained, "xlora" if gated else form)


def check_target(target: Path, results: Path) -> None:
    """Raises:
    InputError: something is there, nothing can be written there, or it is a place of the workflow's own.
    """
    if lexists(target):
        raise InputError(target, "the folder exists", fix="name another, or remove it")
    if target.resolve().is_relative_to(results):
        what = "the folder would lie among the results of the study, which are the workflow's"
        raise InputError(target, what, fix="name one elsewhere")
    check_writable(target.parent)


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
    if form in ENGINES:
        check_base(trained, form)
    adapter = open_as_adapter(trained.folder, trained.facts["base_sha256"])
    if trained.is_mixture:
        run = {key: trained.facts[key] for key in ("base", "base_sha256", "seed", "mixer", "adapters")}
        adapter = replace(adapter, run=run)
    if adapter.own:
        what = f"`{method_name(trained)}` decides by its input what it changes, so no weights hold the change"
        raise InputError(trained.folder, what, next(iter(adapter.own)), fix="run it here: no engine does")
    if form == MERGED:
        write_merged(trained, adapter, folder)
        return
    if form == "peft" and not trained.is_mixture and not adapter.dense and adapter.deltas:
        folder.rmdir()
        copy_adapter(trained.folder, folder)
        return
    model = open_plain_base(trained).model
    adapter = factor_changes(trained, adapter, model)
    adapter = fit_to_engine(trained, adapter, form) if form in ENGINES else adapter
    transposed = any(isinstance(layer, Conv1D) for layer in linear_layers(model).values())
    save_adapter(folder, adapter, causal=trained.base["family"] == "causal", transposed=transposed)


def open_plain_base(trained: Trained) -> Base:
    """The base in numbers that can be read: what was packed for training is in bf16."""
    packed = trained.base.get("precision") in PACKED
    return load_base(trained.base_folder, precision="bf16" if packed else None)


def write_merged(trained: Trained, adapter: Adapter, folder: Path) -> None:
    """Writes the base with the change in its weights, in float32, where the sum rounds nothing away, and the base's
    tokenizer.

    Raises:
        InputError: the adapter does not fit the base, or learnt from audio that the base's own class does not read.
    """
    spoken = next(filter(is_spoken, trained.adapters), None)
    if spoken and trained.base["family"] == "causal":
        what, fix = "what it reads is audio, for which a model's folder has no place", "export it `--for peft`"
        raise InputError(trained.folder, what, spoken, "text", fix)
    base = load_base(trained.base_folder, precision="fp32")
    merge_adapter(base.model, adapter, str(trained.folder))
    base.model.save_pretrained(folder)
    for path in sorted({path for pattern in COPIED_FILES for path in trained.base_folder.glob(pattern)}):
        if path.name not in NOT_COPIED and not (folder / path.name).exists():
            copyfile(path, folder / path.name)


def factor_changes(trained: Trained, adapter: Adapter, model: torch.nn.Module) -> Adapter:
    """The adapter with changes B A alone.

    Raises:
        InputError: one of them is no such product; the error names the method and what to do.
    """
    changed = next(iter([*adapter.deltas, *adapter.dense, *adapter.heads]), None)
    if changed is None:
        raise InputError(
            trained.folder, "the adapter changes nothing: its layers have lost all rank", fix="train it anew"
        )
    factored = factor_adapter(adapter, model)
    if factored is not None and factored.deltas:
        return factored
    method, fix = method_name(trained), "export the whole model `--merged`"
    if "export_rank" in method_options(method):
        fix += ", or train it with `export_rank`"
    what = f"`{method}` changes whole weights, which is no LoRA"
    raise InputError(trained.folder, what, changed, "B A of low rank in every layer", fix)


def method_name(trained: Trained) -> str:
    return str(trained.facts.get("run_info", {}).get("peft_config", {}).get("method", "the method"))


def method_options(method: str) -> set[str]:
    known = method in registry.registered_names("method")
    return set(registry.load_module("method", method).Method.model_fields) if known else set()


def export_mixture(trained: Trained, folder: Path, form: str) -> None:
    """Raises:
    InputError: the mixture is no X-LoRA that PEFT can express, or is to be served by an engine without X-LoRA.
    """
    if form != "peft":
        kind = trained.facts["mixer"]
        who = "no model of plain weights holds" if form == MERGED else f"{form} serves single adapters and not"
        fix = "export its experts one by one, or a mixture that merges them"
        if kind == "xlora":
            fix = f"PEFT runs X-LoRA (`--for peft`), of the engines mistral.rs does; or {fix}"
        raise InputError(trained.folder, f"{who} a mixture that weighs its experts by its input", kind, fix=fix)
    base = open_plain_base(trained)
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
