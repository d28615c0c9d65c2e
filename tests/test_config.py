"""Every wrong config is told in one line: file, key, value, what is allowed, and the nearest name."""

import re
import subprocess
import sys
from copy import deepcopy
from datetime import date

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from snakemake.utils import update_config
from studies import ABSENT, ROOT, changed, pretrained, shipped

from loratory import config as loratory_config
from loratory import registry
from loratory.bases.options import BaseEntry
from loratory.errors import InputError

FILE = "study.yaml"
DEMO = pretrained()
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
BUDGETS = sorted((ROOT / "config" / "budgets").glob("*.yaml"))  # for what they are added to


def complaint(changes: dict) -> str:
    with pytest.raises(InputError) as caught:
        loratory_config.read_config(changed(DEMO, changes), FILE)
    return str(caught.value)


TYPOS = [
    ({"adaptors": {}}, "", "key (adaptors)", "adapters"),
    ({"domains.protein.dataset.min_lenght": 40}, "domains.protein.dataset", "key (min_lenght)", "min_length"),
    ({"domains.protein.dataset.split": {"trian": 0.7}}, "domains.protein.dataset.split", "key (trian)", "train"),
    ({"domains.protein.source.familes": 9}, "domains.protein.source", "key (familes)", "families"),
    ({"adapters.lora.rnak": 8}, "adapters.lora", "key (rnak)", "rank"),
    ({"adapters.lora.training.step": 8}, "adapters.lora.training", "key (step)", "steps"),
    ({"mixtures.xlora.layer_wise": True}, "mixtures.xlora", "key (layer_wise)", "layerwise"),
    ({"bases.mini_lm.pretrian": {}}, "bases.mini_lm", "key (pretrian)", "pretrain"),
    ({"domains.protien": {}}, "domains", "domain (protien)", "protein"),
    ({"general.speach": {}}, "general", "domain (speach)", "speech"),
    ({"adapters.lora.method": "loar"}, "adapters.lora.method", "method (loar)", "lora"),
    ({"mixtures.xlora.mixer": "x-lora"}, "mixtures.xlora.mixer", "mixer (x-lora)", "xlora"),
    ({"bases.mini_lm.family": "casual"}, "bases.mini_lm.family", "family (casual)", "causal"),
    ({"domains.protein.source.kind": "file"}, "domains.protein.source.kind", "kind (file)", "files"),
    ({"domains.protein.dataset.on_error": "skp"}, "domains.protein.dataset.on_error", "on_error (skp)", "skip"),
    ({"domains.protein.adapters": {"mini": ["lora"]}}, "domains.protein.adapters", "base (mini)", "mini_lm"),
    ({"domains.protein.adapters.mini_lm": ["lara"]}, "domains.protein.adapters.mini_lm", "adapter (lara)", "lora"),
    ({"mixtures.xlora.base": "mini_ml"}, "mixtures.xlora.base", "base (mini_ml)", "mini_lm"),
    ({"mixtures.xlora.experts.protien": "lora"}, "mixtures.xlora.experts", "domain (protien)", "protein"),
    ({"mixtures.xlora.experts.protein": "lara"}, "mixtures.xlora.experts.protein", "adapter (lara)", "lora"),
    (
        {"bases.mini_lm.audio.encoder": "mini_wisper"},
        "bases.mini_lm.audio.encoder",
        "base (mini_wisper)",
        "mini_whisper",
    ),
    ({"folding": "mini_bart"}, "folding", "base (mini_bart)", "mini_bert"),
]


@pytest.mark.parametrize(("changes", "key", "unknown", "meant"), TYPOS, ids=[t[2] for t in TYPOS])
def test_an_unknown_name_is_told_with_what_is_allowed_and_what_was_meant(changes, key, unknown, meant):
    line = complaint(changes)
    place = f"{FILE}: {key}" if key else FILE
    assert line.startswith(f"{place}: unknown {unknown}; expected one of ")
    allowed = line.partition("expected one of ")[2].partition(";")[0].split(", ")
    assert meant in allowed
    assert line.endswith(f"; fix: did you mean `{meant}`?")


COW = {"source": {"kind": "simulate"}, "transfer": ["lncrna"]}


def test_a_domain_has_entries_whose_names_have_a_second_part():
    study = loratory_config.read_config(changed(DEMO, {"domains.lncrna-cow": COW}), FILE)
    own, cow = (loratory_config.entries_by_name(study.domains)[name] for name in ("lncrna", "lncrna-cow"))
    assert type(own) is type(cow) and cow.transfer == ("lncrna",)
    assert registry.load_module("domain", "lncrna-cow", "task") is registry.load_module("domain", "lncrna", "task")


LONGER = [
    ({"domains.lncrn-cow": COW}, "domains: unknown domain (lncrn-cow); expected one of lncrna, "),
    ({"domains.lncrna-Cow": COW}, "domains: unknown domain (lncrna-Cow); expected one of lncrna, "),
    (
        {"domains.lncrna-cow": COW | {"sourc": 1}},
        "domains.lncrna-cow: unknown key (sourc); expected one of adapters, ",
    ),
    (
        {"domains.lncrna-cow": COW | {"transfer": ["protein"]}},
        "domains.lncrna-cow.transfer: unknown entry of lncrna (protein); expected one of lncrna",
    ),
]


RANDOM = {"source": {"kind": "simulate"}, "adapters": {"mini_bert": ["lora"]}}
LADDER = {"base": "mini_bert", "adapter": "lora", "entries": ["lncrna-random", "lncrna"]}
LONGER += [
    (
        {"domains.lncrna-random": RANDOM, "compare_splits": LADDER | wrong},
        f"compare_splits.{line}",
    )
    for wrong, line in [
        ({"base": "mini_brt"}, "base: unknown base (mini_brt); "),
        (
            {"entries": ["lncrna-random", "protein"]},
            "entries: unknown entry of lncrna (protein); expected one of lncrna, ",
        ),
        ({"adapter": "lara"}, "adapter: lncrna-random does not train it on mini_bert (lara); fix: name it under "),
        ({"entries": ["lncrna"]}, "entries: wrong value"),
    ]
]


@pytest.mark.parametrize(("changes", "line"), LONGER)
def test_what_is_wrong_with_such_an_entry_is_one_line(changes, line):
    assert complaint(changes).startswith(f"{FILE}: {line}")


def test_only_the_keys_of_the_chosen_kind_are_allowed():
    line = complaint({"domains.protein.source": {"kind": "files", "fasta": "a.fasta", "n": 3}})
    expected = "columns, encoding, fasta, kind, label_id, labels, licence, sha256, tables"
    assert line == f"{FILE}: domains.protein.source: unknown key (n); expected one of {expected}"


LOCAL = {"family": "causal", "path": "models/gpt"}
HEARING = {"audio": {"encoder": "mini_whisper"}}
TIES = {"mixer": "ties", "base": "mini_lm", "experts": {"protein": "lora", "lncrna": "lora"}}
HUB = {"family": "causal", "hub": "someone/something"}
COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
NO_TASK = "the domain protein has no task for a base of family encoder; expected a base of family causal"
ON = {"base": "mini_lm", "corpus": "protein", "adapter": "lora"}
LEARNING = {"family": "causal", "continued": ON}
MISFITS = {  # how the line begins: the change that causes it
    "adapters.lora.rank: wrong value (eight); expected an integer": {"adapters.lora.rank": "eight"},
    "adapters.lora.rank: wrong value (2.5); expected an integer": {"adapters.lora.rank": 2.5},
    "adapters.lora.rank: wrong value (0); expected greater than or equal to 1": {"adapters.lora.rank": 0},
    "seeds: wrong value (0); expected a list": {"seeds": 0},
    "seeds: wrong value ([]); expected at least one entry": {"seeds": []},
    "seeds.1: wrong value (-1); expected greater than or equal to 0": {"seeds": [0, -1]},
    "seeds: 0 is given twice": {"seeds": [0, 1, 0]},
    "domains.recsys.adapters.mini_lm: lora is given twice": {"domains.recsys.adapters.mini_lm": ["lora", "lora"]},
    "mixtures: wrong value (nothing); expected keys with values": {"mixtures": None},
    "domains.protein: wrong value (nothing); expected keys with values": {"domains.protein": None},
    "domains: no domain is configured; expected lncrna, protein, recsys, speech, structure": {
        "domains": {},
        "bases": shipped("config")["bases"],
    },
    "bases: wrong value ({}); expected at least one entry": {"bases": {}},
    "domains: the key is missing": {"domains": ABSENT},
    "bases.mini_lm.family: the key is missing": {"bases.mini_lm.family": ABSENT},
    "adapters.lora.method: the key is missing": {"adapters.lora.method": ABSENT},
    "domains.protein.source.kind: the key is missing": {"domains.protein.source": {"n": 9}},
    "domains.lncrna.source: no files of both classes are named; expected `coding` and `noncoding`, or `tables`": {
        "domains.lncrna.source": {"kind": "files", "coding": "x.fa"}
    },
    "domains.protein: `task.tokens: letters` cannot write the X that `dataset.max_ambiguous` keeps; expected `tok": {
        "domains.protein.task.tokens": "letters",
        "domains.protein.dataset.max_ambiguous": 0.05,
    },
    "domains.structure.dataset: unknown key (too_long); expected one of": {
        "domains.structure.dataset.too_long": "crop"
    },
    "domains.protein.source: neither `fasta` nor `tables` names a file": {"domains.protein.source": {"kind": "files"}},
    "adapters.LoRA-8: wrong value (LoRA-8); expected small letters, digits and _": {"adapters.LoRA-8": {}},
    "domains.protein.dataset.split: split fractions sum to 1.2": {"domains.protein.dataset.split": {"train": 0.9}},
    "domains.protein.source: families 999 > n 600": {"domains.protein.source.families": 999},
    "bases.mini_bert: given: none; expected one of `path`, `hub`, `pretrain` and `continued`": {
        "bases.mini_bert.pretrain": ABSENT
    },
    "bases.mini_bert: given: path, pretrain; expected one of": {"bases.mini_bert.path": "models/bert"},
    "bases.on.continued.base: unknown base (mini_ml)": {
        "bases.on": LEARNING | {"continued": ON | {"base": "mini_ml"}}
    },
    "bases.on.continued.base: a base with an audio prefix cannot learn on (mini_lm)": {"bases.on": LEARNING},
    "bases.on.continued.base: a base of another family (encoder); expected one of family causal": {
        "bases.on": LEARNING | {"continued": ON | {"base": "mini_bert"}}
    },
    "bases.on.continued.base: it begins as itself in the end (on)": {
        "bases.on": LEARNING | {"continued": ON | {"base": "on"}}
    },
    "bases.on.continued.corpus: unknown corpus of `general` (structure)": {
        "bases.on": LEARNING | {"continued": ON | {"corpus": "structure"}}
    },
    "bases.on.continued.adapter: unknown adapter (lara)": {
        "bases.on": LEARNING | {"continued": ON | {"adapter": "lara"}}
    },
    "bases.on: `continued` is for bases of family causal or masked without `audio`": {
        "bases.on": LEARNING | {"family": "encoder"}
    },
    "domains.protein: `task.label: enzime` is not among `dataset.labels` (enzyme); did you mean `enzyme`?": {
        "domains.protein.dataset.labels": {"enzyme": {"column": "EC number", "levels": 1}},
        "domains.protein.task": {"ask": "generate", "label": "enzime"},
    },
    "bases.big: `hub` needs `revision`": {"bases.big": HUB},
    "bases.big: `revision` is no whole commit (main); expected 40 hexadecimal digits": {
        "bases.big": HUB | {"revision": "main"}
    },
    "bases.big.path: `bases_root` is not set ({bases_root}/big); fix: give it, as with `--config bases_root=/f": {
        "bases.big": LOCAL | {"path": "{bases_root}/big"}
    },
    "bases.big: a folding base has its own precision": {
        "bases.big": {"family": "folding", "path": "esm", "precision": "bf16"}
    },
    "bases.mini_bert: only a base of family causal is held in nf4; expected fp32 or bf16": {
        "bases.mini_bert.precision": "nf4"
    },
    "bases.mini_lm.precision: needs a GPU with CUDA, and models run on the CPU (int8)": {
        "bases.mini_lm.precision": "int8"
    },
    "bases.mini_bert: only a causal base takes `audio`": {"bases.mini_bert.audio": {"encoder": "mini_whisper"}},
    "bases.mini_bert: only a base of family whisper takes `whisper`": {"bases.mini_bert.whisper": {}},
    "bases.gpt: no `.pt` file is read as a base of family causal": {"bases.gpt": LOCAL | {"path": "tiny.pt"}},
    "bases.mini_bert.pretrain.domains: the domain lncrna has no task for a base of family folding; expected a base": {
        "bases.mini_bert.family": "folding"
    },
    "bases.mini_lm.pretrain.domains: the domain structure has no task for a base of family causal; expected a": {
        "general.structure": {"source": {"kind": "simulate"}},
        "bases.mini_lm.pretrain.domains": ["structure", "speech"],
    },
    "domains.structure.adapters.esm: a folding base takes no adapters; fix: leave it out": {
        "bases.esm": {"family": "folding", "path": "esm"},
        "domains.structure": {"source": {"kind": "simulate"}, "adapters": {"esm": ["lora"]}},
    },
    "domains.lncrna.adapters.mini_lm: lora augments sound, and lncrna has none (lora); expected a spoken domain": {
        "adapters.lora.training.augmentation": {"pitch": 2}
    },
    "adapters.lora.training.augmentation: nothing is changed, expected one of speed, pitch, vtlp, noise": {
        "adapters.lora.training.augmentation": {}
    },
    "adapters.lora.training.augmentation.noise: 20 is above 5, expected the lower end first": {
        "adapters.lora.training.augmentation": {"noise": [20, 5]}
    },
    "adapters.lora.training.augmentation.vtlp": {"adapters.lora.training.augmentation": {"vtlp": [1.0]}},
    "mixtures.xlora.training: unknown key (augmentation)": {"mixtures.xlora.training": {"augmentation": {}}},
    "bases.mini_lm.audio.encoder: not a Whisper base (encoder)": {"bases.mini_lm.audio.encoder": "mini_bert"},
    "bases.mini_bert.pretrain.domains: " + NO_TASK: {"bases.mini_bert.pretrain.domains": ["protein"]},
    "bases.mini_lm.pretrain.domains: unknown corpus of `general` (lncrna)": {"general.lncrna": ABSENT},
    "bases.mini_lm.pretrain.domains: unknown corpus of `general` (protein)": {"general": ABSENT},
    "domains.speech.adapters.mini_whisper: the base writes `zh`, and `task.normaliser: english` is": {
        "domains.speech.adapters": {"mini_whisper": ["lora"]},
        "bases.mini_whisper.whisper": {"language": "zh"},
    },
    "domains.protein.adapters.mini_bert: " + NO_TASK: {"domains.protein.adapters.mini_bert": ["lora"]},
    "bases.mini_lm.pretrain.domains: this base has no audio encoder for speech; expected": {
        "bases.mini_lm.audio": ABSENT
    },
    "bases.mini_lm.pretrain.domains: no spoken corpus to train the audio projector on (lncrna)": {
        "bases.mini_lm.pretrain.domains": ["lncrna"]
    },
    "domains.speech.adapters.deaf: this base has no audio encoder for speech; expected a causal base with `audio:`": {
        "bases.deaf": LOCAL | {"path": "."},
        "domains.speech.adapters": {"deaf": ["lora"]},
    },
    "bases.gpt.audio.corpus: unknown corpus of `general` (None)": {"bases.gpt": LOCAL | HEARING},
    "bases.gpt.audio.corpus: no spoken corpus to train the audio projector on (protein)": {
        "bases.gpt": LOCAL | {"audio": HEARING["audio"] | {"corpus": "protein"}}
    },
    "mixtures.xlora.experts: too few experts (1); expected at least 2": {"mixtures.xlora.experts": {"speech": "lora"}},
    "mixtures.xlora.training: `learning_rate` was renamed to `learning_rates`, a list": {
        "mixtures.xlora.training": {"steps": 3, "learning_rate": 0.1}
    },
    "mixtures.xlora: `heard_rank` was renamed to `audio_rank`": {
        "mixtures.xlora": {"mixer": "mm_lora", "base": "mini_lm", "experts": {}, "heard_rank": 2}
    },
    "mixtures.xlora.base: mini_bert cannot be mixed on (encoder)": {"mixtures.xlora.base": "mini_bert"},
    "mixtures.mm.base: mini_whisper cannot be mixed on (whisper); expected a base of family causal": {
        "mixtures.mm": {"mixer": "mm_lora", "base": "mini_whisper", "experts": {"speech": "lora", "recsys": "lora"}}
    },
    "mixtures.xlora.experts.lncrna: lncrna trains lora on mini_bert (lora); expected an adapter of base mini_lm": {
        "domains.lncrna.adapters": {"mini_bert": ["lora"]}
    },
    "adapters.lora.rank: wrong value (2); expected an integer; fix: leave the quotes out": {"adapters.lora.rank": "2"},
    "adapters.lora.rank: wrong value (True); expected an integer": {"adapters.lora.rank": True},
    "seeds.0: wrong value (True); expected an integer": {"seeds": [True]},
    "adapters.lora.alpha: wrong value (2); expected a number; fix: leave the quotes out": {"adapters.lora.alpha": "2"},
    "adapters.lora.alpha: wrong value (False); expected a number": {"adapters.lora.alpha": False},
    "mixtures.xlora.layerwise: wrong value (1); expected true or false": {"mixtures.xlora.layerwise": 1},
    "adapters.lora.alpha: wrong value (inf); expected a finite number": {"adapters.lora.alpha": float("inf")},
    "adapters.lora.training.learning_rates.0: wrong value (inf); expected": {
        "adapters.lora.training.learning_rates": ["1e400"]
    },
    "bases.mini_lm.pretrain.architecture.hidden_size: wrong value (nan); expected a finite number": {
        "bases.mini_lm.pretrain.architecture.hidden_size": float("nan")
    },
    "adapters.lora.training.steps: wrong value (1000000000000000000000000000000); expected a number below": {
        "adapters.lora.training.steps": 10**30
    },
    "seeds.0: wrong value (9223372036854775808); expected a number below": {"seeds": [2**63]},
    "title: wrong value (2020-01-01); expected text or a number; fix: write it in quotes": {"title": date(2020, 1, 1)},
    "bases: a key that is no text (7); expected a name; fix: write it in quotes": {"bases": {7: {}}},
    "title: wrong value ('\\ud800'); expected whole letters": {"title": "\ud800"},
    "pathvars: unknown key (result); expected one of benchmarks, logs, results; fix: did you mean `results`?": {
        "pathvars": {"result": "results/mine"}
    },
    "pathvars.results: `../outside` leads out of the folder where Snakemake runs": {"pathvars.results": "../outside"},
    "pathvars.results: `a/../..` leads out of": {"pathvars.results": "a/../.."},
    "pathvars.results: `.` leads out of the folder where Snakemake runs, or is that folder": {"pathvars.results": "."},
    "pathvars.logs: `<results>/../..` leads out of": {"pathvars.logs": "<results>/../.."},
    "pathvars.results: `/` leads out of": {"pathvars.results": "/"},
    "pathvars.results: `''` is no folder to write into": {"pathvars.results": ""},
    "pathvars.results: `a/{x}` is no folder to write into": {"pathvars.results": "a/{x}"},
    "pathvars.benchmarks: `~/b` is no folder to write into": {"pathvars.benchmarks": "~/b"},
    "pathvars.results: `data_root` (config) lies in the folder that results would be written into (config)": {
        "pathvars.results": "config",
        "data_root": "config",
    },
    "shared: the studies' shared folder holds this study's results (results/)": {"shared": "results/"},
    "domains.protein.source: unknown placeholder or a brace in a path ({dataroot}/a); expected `{data_root}`": {
        "domains.protein.source": {"kind": "files", "fasta": "{dataroot}/a"}
    },
    "general.protein.source: unknown placeholder or a brace in a path (a{x}/a); expected `{data_root}`": {
        "general.protein.source": {"kind": "files", "fasta": "{data_root}/a"},
        "data_root": "a{x}",
    },
    "bases.big.path: unknown placeholder or a brace in a path (m/{x}); expected": {
        "bases.big": LOCAL | {"path": "m/{x}"}
    },
    "domains.protein.source.sha256.x: `zz` is no sha256 digest, expected 64 hexadecimal digits": {
        "domains.protein.source": {"kind": "files", "fasta": "x", "sha256": {"x": "zz"}}
    },
    "domains.protein.source: a download without a digest (https://a.org/x.fa)": {
        "domains.protein.source": {"kind": "files", "fasta": "https://a.org/x.fa"}
    },
    "domains.protein.source: unsupported address (ftp://a.org/x.fa); expected https, or a local path": {
        "domains.protein.source": {"kind": "files", "fasta": "ftp://a.org/x.fa"}
    },
    "domains.protein.source.encoding: unknown text encoding `base64`": {
        "domains.protein.source": {"kind": "files", "fasta": "x", "encoding": "base64"}
    },
    "mixtures.xlora.top_k: more than there are experts (99); expected at most 4": {"mixtures.xlora.top_k": 99},
    "mixtures.ties.shares: unknown domain (protien); expected one of": {
        "mixtures.ties": TIES | {"shares": {"protien": 1}}
    },
    "mixtures.ties.shares: an expert without a share (lncrna); expected all experts, or none": {
        "mixtures.ties": TIES | {"shares": {"protein": 1}}
    },
    "domains.recsys.dataset: min_history 9 is above max_history 3": {
        "domains.recsys.dataset": {"min_history": 9, "max_history": 3}
    },
    "evaluation: max_records 5 is below min_records 10": {"evaluation": {"max_records": 5}},
    "evaluation: folded 9 is above samples 5": {"evaluation": {"samples": 5, "folded": 9}},
    "folding: not a folding base (causal); expected a base of family folding": {"folding": "mini_lm"},
}
FASTA = {"kind": "files", "fasta": "x.fa"}
ADDRESS = "https://a.org/x.fa"
RATED = {"kind": "files", "ratings": "x.csv", "items": "y.csv"}
MISFITS |= {  # what does not go together, or is out of bounds
    "domains.protein.dataset: min_length 300 > max_length 200": {"domains.protein.dataset.min_length": 300},
    "domains.protein.source: min_length 500 > max_length 160": {"domains.protein.source.min_length": 500},
    "domains.protein.task: min_length 300 > max_length 100": {
        "domains.protein.task": {"min_length": 300, "max_length": 100}
    },
    "domains.lncrna.dataset: min_length 900 exceeds max_length 300": {
        "domains.lncrna.dataset": {"min_length": 900, "max_length": 300}
    },
    "domains.lncrna.task: stride 50 exceeds window 10": {"domains.lncrna.task": {"window": 10, "stride": 50}},
    "domains.speech.dataset: min_age 12 is above max_age 6": {"domains.speech.dataset": {"min_age": 12, "max_age": 6}},
    "domains.speech.dataset: min_seconds 9.0 is above max_seconds 4.0": {"domains.speech.dataset.min_seconds": 9},
    "domains.speech.dataset.spoken: `xxx` says of no words that they stay": {"domains.speech.dataset.spoken": ["xxx"]},
    "domains.recsys: `task.history` 50 is above the 10 ratings that a record carries": {
        "domains.recsys.task.history": 50
    },
    "domains.recsys: `dataset.positive` 9 tells no two ratings apart": {"domains.recsys.dataset.positive": 9},
    "domains.recsys.dataset: `protocol: leave_last_out` has no fractions": {
        "domains.recsys.dataset": {"protocol": "leave_last_out", "split": {"train": 0.6, "gate": 0.2}}
    },
    "domains.recsys.source: no scale in [0.0, 5.0, 9.0]; expected [lowest, highest, step]": {
        "domains.recsys.source": RATED | {"scale": [0, 5, 9]}
    },
    "domains.recsys.task.event: nothing to fill into `{title.__class__}`": {
        "domains.recsys.task.event": "{title.__class__}"
    },
    "domains.protein.dataset.split.train: wrong value (-0.2); expected greater than 0": {
        "domains.protein.dataset.split": {"train": -0.2, "gate": 0.6, "valid": 0.3, "test": 0.3}
    },
    "domains.protein.dataset.split.gate: wrong value (0); expected greater than 0": {
        "domains.protein.dataset.split": {"train": 0.8, "gate": 0}
    },
    "adapters.lora.training.learning_rates: wrong value ([]); expected at least one entry": {
        "adapters.lora.training.learning_rates": []
    },
    "adapters.lora.training.learning_rates: 0.001 is given twice": {
        "adapters.lora.training.learning_rates": ["1e-3", 0.001]
    },
    **{
        f"adapters.lora.training.learning_rates.0: wrong value ({rate}); expected greater than 0": {
            "adapters.lora.training.learning_rates": [rate]
        }
        for rate in (0, -1.0)
    },
    "adapters.lora.training.warmup: wrong value (2); expected less than or equal to 1": {
        "adapters.lora.training.warmup": 2
    },
    "adapters.lora.target_modules: wrong value ((q+)+x); expected a list": {"adapters.lora.target_modules": "(q+)+x"},
    "adapters.lora.target_modules: wrong value ([]); expected at least one": {"adapters.lora.target_modules": []},
    "adapters.lora.target_modules: q is given twice": {"adapters.lora.target_modules": ["q", "q"]},
    "adapters.cut: export_rank is 9, expected at most rank (4)": {
        "adapters.cut": {"method": "dylora", "rank": 4, "export_rank": 9}
    },
    "adapters.fall: warm + final is 1.2, expected less than 1": {
        "adapters.fall": {"method": "adalora", "warm": 0.6, "final": 0.6}
    },
    "mixtures.ties.shares: every share is 0": {
        "mixtures.ties": TIES | {"shares": {"protein": 0, "lncrna": 0}},
    },
    "mixtures.ties.density: wrong value (0)": {"mixtures.ties": TIES | {"density": 0}},
    "mixtures.xlora.experts.protein: protein trains lora on mini_lm (lora); expected an adapter of base mini_wh": {
        "mixtures.xlora.base": "mini_whisper"
    },
    "serve_throughput.base: what is served must write text (encoder); expected a causal base": {
        "serve_throughput": {"base": "mini_bert"}
    },
    "serve_throughput.adapters: wrong value": {"serve_throughput": {"base": "mini_lm", "adapters": []}},
    "compare_splits.entries: wrong value (['protein']); expected at least 2 entries": {
        "compare_splits": {"base": "mini_lm", "entries": ["protein"]}
    },
    "evaluation.top_p: wrong value (1.1); expected less than or equal to 1": {"evaluation": {"top_p": 1.1}},
    "resources.device: unknown device (tpu); expected one of cpu, cuda": {"resources": {"device": "tpu"}},
    "title: wrong value (nothing); expected text": {"title": None},
    "data_root: wrong value (''); expected at least one letter": {"data_root": ""},
}
MISFITS |= {  # names, paths and addresses with something in them
    **{
        f"{group}.{told}: wrong value ({told.rpartition('.')[2] or told}); expected small letters, digits and _": {
            group: {name: DEMO[group][of]}
        }
        for group, of in (("adapters", "lora"), ("bases", "mini_lm"), ("mixtures", "xlora"))
        for name, told in {
            "a b": "a b",
            "a\nb": "a b",
            "a;rm": "a;rm",
            "$(a)": "$(a)",
            "{a}": "{a}",
            "a/b": "a/b",
            "a'": "a'",
            "*": "*",
            "\x1b[2J": "\\x1b[2J",
            "a" * 65: "a" * 39 + "…",
        }.items()
    },
    **{
        f"domains: unknown domain ({told}); expected one of lncrna, ": {"domains": {name: DEMO["domains"]["protein"]}}
        for name, told in {"protein-../x": "protein-../x", "protein-": "protein-", "protein-a\n": "protein-a"}.items()
    },
    **{f"shared: `{path}` is no folder to write into": {"shared": path} for path in ("~/x", "a*", "<results>", "{x}")},
    "shared: `a\\x00b` is no folder to write into": {"shared": "a\x00b"},
    "domains.protein.source: a control character in a path (a b)": {
        "domains.protein.source": FASTA | {"fasta": "a\nb"}
    },
    "bases.gpt.path: a control character in a path (a\\x00b)": {"bases.gpt": LOCAL | {"path": "a\x00b"}},
    "bases.gpt.path: wrong value (''); expected at least one letter": {"bases.gpt": LOCAL | {"path": ""}},
    **{
        f"bases.big: `hub` is no repository ({hub or repr(hub)}); expected `owner/name`": {
            "bases.big": HUB | {"hub": hub, "revision": COMMIT}
        }
        for hub in ("../x", "a/b/c", "a;b/c", "")
    },
    "bases.gpt: `revision` is for a base with `hub`": {"bases.gpt": LOCAL | {"revision": COMMIT}},
    "domains.protein.source: unsupported address (https://); expected https": {
        "domains.protein.source": FASTA | {"fasta": "https://"}
    },
    "domains.protein.source: no address: Invalid IPv6 URL (https://[x); expected https": {
        "domains.protein.source": FASTA | {"fasta": "https://[x"}
    },
    "domains.protein.source: an address with a name, password or token in it (a.org); fix: fetch the file by hand": {
        "domains.protein.source": FASTA | {"fasta": "https://me:secret@a.org/x.fa"}
    },
    "domains.protein.source.sha256: a digest of what is not downloaded (x.fa); expected an address": {
        "domains.protein.source": FASTA | {"sha256": {"x.fa": "a" * 64}}
    },
    f"domains.protein.source.sha256: a digest of what is not downloaded ({ADDRESS}s); expected an address": {
        "domains.protein.source": FASTA | {"fasta": ADDRESS, "sha256": {ADDRESS: "a" * 64, f"{ADDRESS}s": "a" * 64}}
    },
    f"2 of the files and folders that it names do not exist: {'a' * 5000}": {
        "domains.protein.source": FASTA | {"fasta": "a" * 5000},
        "bases.gpt": LOCAL | {"path": "no/gpt"},
        "domains.speech.adapters": {"gpt": ["lora"]},
        "mixtures": {},
    },
}


@pytest.mark.parametrize("told", MISFITS)
def test_what_does_not_fit_is_told_with_its_key(told):
    line = complaint(MISFITS[told])
    assert line.startswith(f"{FILE}: {told}") and line.isprintable() and "secret" not in line


def test_a_file_that_is_not_yaml_is_told_with_its_line(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("title: demo\nseeds: [0\ndomains: {}\n")
    with pytest.raises(InputError, match=r"study\.yaml:3: not YAML"):
        loratory_config.load_config(path)


def test_a_rate_may_be_written_with_an_exponent_which_yaml_takes_for_text():
    raw = changed(DEMO, {"adapters.lora.training.learning_rates": ["1e-3", 2e-3], "title": "1e5"})
    study = loratory_config.read_config(raw, FILE)
    assert study.adapters["lora"].training.learning_rates == (0.001, 0.002) and study.title == "1e5"


def test_numbers_and_lists_from_the_command_line_are_what_yaml_says_they_are():
    given = {"seeds": ["0", "3"], "evaluation": {"max_records": "50", "top_p": "0.5"}, "compare": "null"}
    raw = changed(DEMO, {"seeds": ["0", "3"], "evaluation": given["evaluation"], "compare": "null"})
    study = loratory_config.read_config(raw, FILE, given)
    assert study.seeds == (0, 3) and study.evaluation.max_records == 50 and study.evaluation.top_p == 0.5
    assert study.compare is None
    with pytest.raises(InputError, match=r"seeds\.0: wrong value \(0\); expected an integer"):
        loratory_config.read_config(raw, FILE)


def test_all_that_is_missing_is_named_at_once(tmp_path):
    (tmp_path / "there.fa").touch()
    files = {"kind": "files", "coding": [f"{tmp_path}/there.fa", "no/a.fa"], "noncoding": ["no/b.fa"]}
    zipped = {"kind": "files", "ratings": "no/ml.zip!ml/ratings.csv"}
    spoken = {"kind": "files", "folders": [str(tmp_path), "no/speech"]}
    changes = {"domains.lncrna.source": files, "domains.recsys.source": zipped, "general.speech.source": spoken}
    changes |= {
        "bases.big": LOCAL | {"path": "no/gpt"},
        "bases.large": HUB | {"revision": COMMIT},
        "bases_root": "no/m",
    }
    study = loratory_config.read_config(changed(DEMO, changes), FILE)
    with pytest.raises(InputError) as caught:
        loratory_config.require_inputs(study, FILE)
    tables = [f"{tmp_path}/{name}" for name in ("wav.scp", "text", "utt2spk")]
    missing = ["no/a.fa", "no/b.fa", "no/ml.zip", "no/speech", *tables, "no/gpt", "no/m/large"]
    assert {*str(caught.value).partition("do not exist: ")[2].partition(";")[0].split(", ")} == {*missing}
    assert str(caught.value).startswith(f"{FILE}: {len(missing)} of the files and folders that it names do not exist")


def test_a_pattern_is_its_files_and_one_without_a_match_is_missing(tmp_path):
    for name in ("b.fa", "a.fa", "c.txt"):
        (tmp_path / name).touch()
    files = {"kind": "files", "fasta": ["{data_root}/*.fa", "{data_root}/c.txt"]}
    changes = {"domains.protein.source": files, "data_root": str(tmp_path)}
    study = loratory_config.read_config(changed(DEMO, changes), FILE)
    loratory_config.require_inputs(study, FILE)
    assert study.domains.protein.source.file_paths() == [f"{tmp_path}/{name}" for name in ("a.fa", "b.fa", "c.txt")]
    changes["domains.protein.source"] = {"kind": "files", "fasta": "{data_root}/*.fasta"}
    study = loratory_config.read_config(changed(DEMO, changes), FILE)
    with pytest.raises(InputError, match=re.escape(f"do not exist: {tmp_path}/*.fasta; fix: mend the paths")):
        loratory_config.require_inputs(study, FILE)


def test_a_base_that_does_not_exist_is_told_as_such_and_with_all_else_that_is_missing():
    changes = {"bases.gpt": LOCAL | {"path": "no/gpt"}, "domains.speech.adapters": {"gpt": ["lora"]}, "mixtures": {}}
    changes["domains.protein.source"] = {"kind": "files", "fasta": "no/x.fa"}
    assert "2 of the files and folders that it names do not exist: no/x.fa, no/gpt" in complaint(changes)


def test_control_letters_do_not_reach_the_terminal():
    line = complaint({"domains.protein.source": {"kind": "files", "fasta": "ftp://\x1b[2J\n"}})
    assert line.isprintable() and "\\x1b[2J" in line


JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
JUNK = st.one_of(JUNK, st.lists(JUNK, max_size=2), st.dictionaries(st.text(max_size=5), JUNK, max_size=2))


@st.composite
def spoilt(draw):
    """The demo's config with one value, anywhere, replaced by junk, taken out, or put under another key."""
    raw = deepcopy(DEMO)
    place = raw
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if isinstance(place, dict) and draw(st.booleans()):
            place[draw(st.text(max_size=8))] = place.pop(key)
        else:
            place[key] = draw(JUNK)
        return raw


@settings(max_examples=300, deadline=None)
@given(spoilt())
def test_a_spoilt_config_is_read_or_refused_in_one_line(raw):
    try:
        loratory_config.read_config(raw, FILE)
    except InputError as error:
        assert str(error).startswith(f"{FILE}: ")
        assert "\n" not in str(error)


WIDE = {"adapters.wide": {"method": "lora"}, "domains.recsys.adapters.mini_lm": ["wide"], "mixtures": {}}
COMPARISONS = [
    ({"compare": {"base": "mini_ml"}}, r"compare\.base: unknown base \(mini_ml\).*did you mean `mini_lm`"),
    (
        {"compare": {"base": "mini_whisper", "against": "wide"}},
        r"compare\.against: speech does not train it on mini_whisper",
    ),
    ({"compare": {"base": "mini_lm"}} | WIDE, r"compare\.against: recsys does not train it .* expected one of wide"),
]


@pytest.mark.parametrize(("changes", "told"), COMPARISONS, ids=["base", "against", "not everywhere"])
def test_a_comparison_names_a_base_and_an_adapter_of_all_its_domains(changes, told):
    assert re.search(told, complaint(changes))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    loratory_config.load_config(path)


@pytest.mark.parametrize("path", BUDGETS, ids=lambda path: path.name)
def test_a_budget_fits_the_study_of_its_name_else_that_on_real_data(path):
    config = shipped(path.stem if path.name in {study.name for study in CONFIGS} else "real")
    update_config(config, yaml.safe_load(path.read_text()))
    loratory_config.read_config(config, str(path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_a_shipped_config_draws_is_enough_to_print(path):
    evaluation = loratory_config.read_config(shipped(path.stem), path.name).evaluation
    drawn = [evaluation.max_records, evaluation.max_valid, evaluation.samples, evaluation.folded]
    assert all(n >= evaluation.min_records for n in drawn if n)


def test_the_root_of_the_data_is_filled_in_everywhere():
    files = {"kind": "files", "fasta": "{data_root}/uniref.fasta.gz"}
    fold = {"bases.esm": {"family": "folding", "path": "{data_root}/esm"}, "folding": "esm"}
    chains = {"source": {"kind": "files", "chains": ["{data_root}/pdb", "/y/chain_set.jsonl"]}}
    raw = changed(DEMO, {"domains.protein.source": files, "domains.structure": chains, "data_root": "/x/", **fold})
    study = loratory_config.read_config(raw, FILE)
    assert study.domains.protein.source.fasta == ["/x/uniref.fasta.gz"]
    assert study.bases["esm"].path == "/x/esm"
    assert study.domains.structure.source.chains == ["/x/pdb", "/y/chain_set.jsonl"]


def test_published_bases_are_taken_from_the_one_folder_that_is_given():
    bases = {"big": HUB | {"revision": COMMIT}, "other": LOCAL | {"path": "{bases_root}/x/other"}}
    raw = changed(DEMO, {f"bases.{name}": base for name, base in bases.items()} | {"bases_root": "/models/"})
    study = loratory_config.read_config(raw, FILE)
    assert loratory_config.published_folder(study, "big") == "/models/big"
    assert study.bases["other"].path == "/models/x/other"
    assert [loratory_config.published_folder(study, name) for name in ("other", "mini_bert")] == [None, None]
    connected = loratory_config.read_config(changed(DEMO, {"bases.big": bases["big"]}), FILE)
    assert loratory_config.published_folder(connected, "big") is None


@pytest.mark.parametrize("name", registry.registered_names("method"))
def test_a_base_in_half_precision_takes_every_method(name):
    needed = {"type": "vera"} if name == "peft" else {}
    changes = {"bases.mini_lm.precision": "bf16", "adapters.own": {"method": name, **needed}}
    changes |= {"domains.protein.adapters.mini_lm": ["lora", "own"]}
    loratory_config.read_config(changed(DEMO, changes), FILE)
    changes |= {"resources.device": "cuda"}
    if not registry.load_module("method", name).Method.needs_plain_weights:
        loratory_config.read_config(changed(DEMO, changes | {"bases.mini_lm.precision": "nf4"}), FILE)
        return
    told = f"{name} needs the base's weights as they are, and mini_lm holds them packed (nf4); expected a base with"
    found = complaint(changes | {"bases.mini_lm.precision": "nf4"})
    assert found.startswith(f"{FILE}: domains.protein.adapters.mini_lm: {told}")


def test_a_folding_base_is_pretrained_on_structures_and_needs_none_to_judge_it():
    learnt = {"domains": ["structure"], "architecture": {}}
    general = {"source": {"kind": "files", "chains": ["pdb"], "simulated": {"n": 50, "families": 50}}}
    fold = {"bases.fold": {"family": "folding", "pretrain": learnt}, "general.structure": general, "folding": "fold"}
    study = loratory_config.read_config(changed(DEMO, fold), FILE)
    assert study.bases["fold"].corpora == ("structure",) and study.domains.structure is None


@pytest.mark.parametrize(("added", "simulated"), [(None, False), ({"n": 50, "families": 50}, True)])
def test_simulated_chains_beside_given_ones_count_as_simulated(added, simulated):
    chains = {"kind": "files", "chains": ["pdb"], "simulated": added}
    study = changed(DEMO, {"domains": {"structure": {"source": chains}}, "mixtures": {}})
    assert loratory_config.is_simulated(loratory_config.read_config(study, FILE)) == simulated


def test_entries_come_back_from_the_plain_values_that_rules_pass():
    study = loratory_config.read_config(DEMO, FILE)
    plain = {
        "adapter_entry": study.adapters["lora"],
        "mixture_entry": study.mixtures["xlora"],
    }
    for read, entry in plain.items():
        again = getattr(loratory_config, read)(entry.model_dump(mode="json"))
        assert again.model_dump() == entry.model_dump()
    for domain, given_there in loratory_config.entries_by_name(study.domains).items():
        source = loratory_config.domain_source(domain, given_there.source.model_dump(mode="json"))
        assert source == given_there.source


LIGHT = """
import sys, time
started = time.process_time()
from loratory.config import load_config
load_config(sys.argv[1])
print(time.process_time() - started, *{name.partition(".")[0] for name in sys.modules})
"""


def test_reading_a_config_is_light():
    """Snakemake reads it at every start, once more in every job."""
    command = [sys.executable, "-c", LIGHT, str(ROOT / "config" / "config.yaml")]
    env = {"PYTHONPATH": str(ROOT / "scripts")}
    seconds, *modules = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "pyarrow", "transformers", "numpy", "scipy", "peft"} & set(modules)
    assert float(seconds) < 1


def test_a_family_that_is_not_pretrained_here_says_so(monkeypatch):
    monkeypatch.setattr(registry, "registered_names", lambda noun: ["causal"] if noun == "pretraining" else [])
    pretrain = {"domains": ["lncrna"], "architecture": {}}
    assert BaseEntry(family="causal", pretrain=pretrain).pretrain
    with pytest.raises(ValueError, match="a base of family encoder cannot be pretrained here; give `path` or `hub`"):
        BaseEntry(family="encoder", pretrain=pretrain)
