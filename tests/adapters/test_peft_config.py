"""Configs of foreign adapters, with PEFT as the oracle of which layers are meant."""

import dataclasses
from pathlib import Path

import peft
import pytest
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from loratory.adapters.peft_config import LoraConfig, is_bounded, read_lora_config
from loratory.errors import InputError

NAMES = [
    *(f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1, 11) for name in "qkv"),
    *("model.layers.1.mlp.down_proj", "model.layers.1.experts.0.down_proj", "encoder.block.1.q_proj", "q_proj"),
    *("lm_head", "score", "xq_proj", "model.layersX1.q_proj", "bert.pooler.dense"),
]
WHERE = Path("a/adapter_config.json")
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}

TARGETS = {
    "names": {"target_modules": ["q_proj", "dense"]},
    "whole names": {"target_modules": ["model.layers.1.self_attn.q_proj", "lm_head"]},
    "a pattern": {"target_modules": r".*\.(q_proj|v_proj)$"},
    "a pattern of numbers": {"target_modules": r"model\.layers\.\d+\.self_attn.(?:q|k)_proj"},
    "a name as a pattern": {"target_modules": "q_proj"},
    "all but": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
    "all but a pattern": {"target_modules": ["q_proj"], "exclude_modules": r"model\.layers.*"},
    "layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "a layer": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 0},
    "no layers": {"target_modules": ["q_proj"], "layers_to_transform": []},
    "layers of a block": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "block"},
    "layers of blocks": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    "beside saved modules": {"target_modules": ["q_proj", "score", "dense"], "modules_to_save": ["score", "pooler"]},
}


@pytest.mark.parametrize("options", TARGETS.values(), ids=TARGETS)
def test_a_layer_is_a_target_where_peft_says_so(options):
    theirs, ours = peft.LoraConfig(**options), read_lora_config(PLAIN | options, WHERE)
    expected = [name for name in NAMES if check_target_module_exists(theirs, name)]
    assert [name for name in NAMES if ours.is_target(name)] == expected


def test_all_linear_layers_are_targets_where_the_config_says_so():
    assert all(map(read_lora_config(PLAIN | {"target_modules": "all-linear"}, WHERE).is_target, NAMES))


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj"],
        ["v_proj", "q_proj"],
        ["layers.1.self_attn.q_proj", "q_proj"],
        ["^model.layers.0.self_attn.q_proj"],
        [r".*\.layers\.[0-9]\..*"],
        [r"layers\.(0|1)\.self_attn.*"],
        ["layers.1.q_proj"],
        ["proj"],
    ],
)
def test_a_pattern_sets_rank_and_alpha_where_peft_says_so(keys):
    values = {key: place + 1 for place, key in enumerate(keys)}
    config = read_lora_config(
        PLAIN | {"rank_pattern": values, "alpha_pattern": {k: 3 * v for k, v in values.items()}}, WHERE
    )
    for name in NAMES:
        key = get_pattern_key(values, name)
        rank, alpha = values.get(key, 4), 3 * values[key] if key in values else 8
        assert (config.rank(name), config.scale(name)) == (rank, alpha / rank)


SLOW = [
    "(q+)+x",
    "(q|q)*x",
    "(.*)*x",
    r"(\w+\.)+x",
    ".*.*.*.*x",
    "(a|b)?" * 30,
    "q{1,9}{1,9}",
    "(?=(q+))+x",
    "q" * 500,
    "[",
]


@pytest.mark.parametrize("pattern", SLOW)
@pytest.mark.parametrize(
    "field", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save"]
)
def test_a_pattern_that_may_take_for_ever_is_refused_and_never_run(field, pattern):
    value = {pattern: 1} if field.endswith("pattern") else [pattern] if field == "modules_to_save" else pattern
    with pytest.raises(InputError, match=r"adapter_config\.json: a pattern that may take for ever.*fix: list"):
        read_lora_config(PLAIN | {field: value}, WHERE)


def test_a_pattern_of_layers_is_bounded_too():
    with pytest.raises(InputError, match="a pattern that may take for ever"):
        read_lora_config(PLAIN | {"layers_to_transform": 1, "layers_pattern": ["h", "(h+)+"]}, WHERE)


def test_names_of_modules_are_bounded_patterns():
    assert all(map(is_bounded, NAMES))


UNDERSTOOD = {"r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"}
UNDERSTOOD |= {"layers_to_transform", "layers_pattern", "modules_to_save", "use_rslora", "fan_in_fan_out", "bias"}
UNDERSTOOD |= {"init_lora_weights", "peft_type", "task_type", "inference_mode"}
WITHOUT_EFFECT = {
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "runtime_config",
    "megatron_core",
}
WITHOUT_EFFECT |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"}
FIELDS = {field.name for field in dataclasses.fields(peft.LoraConfig)}


@pytest.mark.parametrize("field", [*sorted(FIELDS - UNDERSTOOD - WITHOUT_EFFECT), "a_field_of_tomorrow"])
def test_each_field_of_peft_that_is_not_understood_is_refused_by_name_where_it_is_set(field):
    read_lora_config(PLAIN | {field: None}, WHERE)
    with pytest.raises(InputError, match=rf"adapter_config\.json: `{field}` is not supported"):
        read_lora_config(PLAIN | {field: {"x": 1}}, WHERE)


@pytest.mark.parametrize(
    "start", ["pissa", "pissa_niter_4", "PiSSA", "olora", "corda", "loftq", "lora_ga", "unheard of", 1]
)
def test_an_adapter_that_is_right_on_a_changed_base_alone_is_refused(start):
    with pytest.raises(
        InputError, match=r"`init_lora_weights` has changed the base's weights.*fix: save it with PEFT's"
    ):
        read_lora_config(PLAIN | {"init_lora_weights": start}, WHERE)


@pytest.mark.parametrize("start", [None, True, False, "gaussian", "eva", "orthogonal"])
def test_a_start_that_leaves_the_base_alone_is_accepted(start):
    assert read_lora_config(PLAIN | {"init_lora_weights": start}, WHERE).r == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_rslora": "false"}, r"use_rslora: wrong value \(false\); expected true or false"),
        ({"use_rslora": 1}, r"use_rslora: wrong value \(1\)"),
        ({"lora_alpha": float("nan")}, r"lora_alpha: wrong value \(nan\); expected a finite number"),
        ({"lora_alpha": 10**400}, "lora_alpha: wrong value"),
        ({"lora_alpha": "16"}, r"lora_alpha: wrong value \(16\); expected a number"),
        ({"lora_alpha": True}, "lora_alpha: wrong value"),
        ({"r": 0}, r"r: wrong value \(0\)"),
        ({"r": 4.0}, r"r: wrong value \(4.0\)"),
        ({"r": None}, r"r: wrong value \(nothing\)"),
        ({"rank_pattern": {"q_proj": "4"}}, r"rank_pattern.q_proj: wrong value"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, r"alpha_pattern.q_proj: wrong value"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern: wrong value"),
        ({"target_modules": None}, r"target_modules: neither a list of names nor one pattern \(None\)"),
        ({"target_modules": ["q_proj", 1]}, "target_modules: neither a list of names"),
        ({"layers_to_transform": "0"}, "layers_to_transform: neither a whole number nor a list"),
        ({"layers_pattern": "h"}, "`layers_pattern` without `layers_to_transform`"),
        ({"target_modules": ".*q_proj", "layers_to_transform": 1}, "layers are chosen beside a pattern"),
        ({"modules_to_save": [""]}, "modules_to_save.0"),
        ({"modules_to_save": "score"}, "modules_to_save: wrong value"),
        ({"lora_dropout": 2}, "lora_dropout: wrong value"),
        ({"fan_in_fan_out": "yes"}, "fan_in_fan_out: wrong value"),
        ({"task_type": "POETRY"}, "task_type"),
        ({"bias": "lora_only"}, "trained biases are not supported"),
        ({"bias": None}, "trained biases are not supported"),
        ({"peft_type": ["LORA"]}, "not a LoRA"),
    ],
)
def test_a_value_of_another_type_than_pefts_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=r"a/adapter_config\.json: " + message):
        read_lora_config(PLAIN | change, WHERE)


def test_a_config_without_targets_is_refused():
    with pytest.raises(InputError, match="target_modules: the key is missing"):
        read_lora_config({"peft_type": "LORA", "r": 4}, WHERE)


def test_fields_that_a_strict_reader_would_stumble_over_are_taken_as_peft_writes_them(tmp_path):
    import json

    peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2).save_pretrained(tmp_path)
    given = json.loads((tmp_path / "adapter_config.json").read_text())
    assert isinstance(read_lora_config(given, WHERE), LoraConfig)
