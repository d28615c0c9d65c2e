"""What a PEFT folder says of its LoRA: which layers it changes, at what rank and by what scale.

The file comes from elsewhere. Every field of peft 0.21's `LoraConfig` is understood here, or is without effect on a
trained adapter, or is refused by name where it is set; so is a field that this version does not know. PEFT runs some
fields as regular expressions, which a foreign file could make run for ever: those whose matching is bounded are read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from loratory.errors import InputError, short_value
from loratory.problems import read_fields

T = TypeVar("T")

WITHOUT_EFFECT = {  # once an adapter is trained: of its start, its training, its origin
    *("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "runtime_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
}
STARTS = (
    None,
    True,
    False,
    "gaussian",
    "eva",
    "orthogonal",
    "mica",
)  # those that leave the base's weights as they are
ALL_LINEAR = "all-linear"

# Bounded patterns: names, in which a few places stay open. None is repeated as a whole, so that matching takes at most
# (length of the name) ** MOST_OPEN steps.
LITERAL = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?")
WORDS = re.compile(r"\((?:\?:)?[\w-]+(?:\|[\w-]+)*\)")  # (q_proj|v_proj)
REPEATED = re.compile(r"(?:\.|\\d|\[0-9\])[*+]\??")  # .* or \d+
CLASS = re.compile(r"\\d|\[0-9\]|\[\w+\]")  # one letter of several
MOST_OPEN, MOST_LETTERS, LONGEST_NAME = 3, 400, 200
FIX = "list the modules' names"


def check_names(value: object) -> object:
    """Raises:
    ValueError: neither names nor one pattern.
    """
    if isinstance(value, str) or is_list_of(str, value):
        return value
    raise ValueError(f"neither a list of names nor one pattern ({short_value(value)})")


def check_indices(value: object) -> object:
    """Raises:
    ValueError: neither whole numbers nor one.
    """
    if value is None or is_list_of(int, [value]) or is_list_of(int, value):
        return value
    raise ValueError(f"neither a whole number nor a list of them ({short_value(value)})")


def is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


Names = Annotated[list[str] | str, BeforeValidator(check_names)]
TaskType = Literal["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]
Rank = Annotated[int, Field(ge=1)]


class LoraConfig(BaseModel):
    """The fields of `adapter_config.json` that say what a trained LoRA does; names and defaults are PEFT's."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    r: Rank = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: Names
    exclude_modules: Names | None = None
    modules_to_save: list[Annotated[str, Field(min_length=1)]] | None = None
    layers_to_transform: Annotated[list[int] | int | None, BeforeValidator(check_indices)] = None
    layers_pattern: Names | None = None
    fan_in_fan_out: bool = False  # of the base's weights; A and B lie the same way
    lora_dropout: float = Field(0.0, ge=0, le=1)  # in training
    inference_mode: bool = False
    task_type: TaskType | None = None

    @model_validator(mode="after")
    def check_patterns(self) -> Self:
        """Raises:
        ValueError: matching a pattern may take for ever, or PEFT would not take the fields together.
        """
        patterns = [*(self.rank_pattern or ()), *(self.alpha_pattern or ()), *(self.modules_to_save or ())]
        patterns += as_list(self.layers_pattern)
        patterns += [text for text in (self.target_modules, self.exclude_modules) if isinstance(text, str) and text]
        for pattern in patterns:
            if not is_bounded(pattern):
                raise ValueError(f"a pattern that may take for ever to match ({short_value(pattern)}); fix: {FIX}")
        by_layer = self.layers_to_transform is not None
        if isinstance(self.target_modules, str) and (by_layer or self.layers_pattern is not None):
            raise ValueError(f"layers are chosen beside a pattern in `target_modules`; fix: {FIX}")
        if self.layers_pattern and not by_layer:
            raise ValueError("`layers_pattern` without `layers_to_transform`")
        return self

    def rank(self, module: str) -> int:
        return first_match(self.rank_pattern or {}, module, self.r)

    def scale(self, module: str) -> float:
        """Of B A: alpha over the rank, or over its root with rsLoRA."""
        rank = self.rank(module)
        return first_match(self.alpha_pattern or {}, module, self.lora_alpha) / (
            sqrt(rank) if self.use_rslora else rank
        )

    def is_target(self, module: str) -> bool:
        """Whether PEFT puts a LoRA on the linear layer of this name."""
        if self.is_excluded(module):
            return False
        if isinstance(self.target_modules, str):
            everything = self.target_modules.lower() == ALL_LINEAR
            return everything or compile_pattern(self.target_modules).fullmatch(module) is not None
        if module in self.target_modules:
            return True
        return is_named(module, self.target_modules) and self.is_in_layers(module)

    def is_excluded(self, module: str) -> bool:
        if any(compile_pattern(rf"(^|.*\.){name}($|\..*)").match(module) for name in self.modules_to_save or ()):
            return True
        if isinstance(self.exclude_modules, str):
            return bool(self.exclude_modules) and compile_pattern(self.exclude_modules).fullmatch(module) is not None
        return is_named(module, self.exclude_modules or [])

    def is_in_layers(self, module: str) -> bool:
        """Whether the first number in the name (after one of the patterns, if there are any) is of a wanted layer."""
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        starts = [rf"(?:^|.*?\.){pattern}" for pattern in as_list(self.layers_pattern)] or [r".*?\.[^.]*"]
        found = next(filter(None, (compile_pattern(rf"{start}\.(\d+)\.").match(module) for start in starts)), None)
        return found is not None and int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)

    def is_saved(self, parameter: str) -> bool:
        """Whether PEFT stores this parameter whole: as it does, by how the name of a module around it ends."""
        around = [parameter[:place] for place, letter in enumerate(parameter) if letter == "."]
        return any(module.endswith(name) for module in around for name in self.modules_to_save or ())


def read_lora_config(given: dict[str, Any], where: Path) -> LoraConfig:
    """Args:
        given: the content of `adapter_config.json`, which is the file `where`.

    Raises:
        InputError: not a LoRA, a value of the wrong type, or something that this reader would get wrong.
    """
    if given.get("peft_type") != "LORA":
        raise InputError(where, "not a LoRA", given.get("peft_type", "no peft_type"), "peft_type LORA")
    if given.get("bias", "none") != "none":
        raise InputError(where, "trained biases are not supported", given["bias"], "bias: none")
    start = given.get("init_lora_weights")
    if not isinstance(start, str | bool | None) or (start.lower() if isinstance(start, str) else start) not in STARTS:
        what = "`init_lora_weights` has changed the base's weights, on which alone the adapter is right"
        fix = "save it with PEFT's `path_initial_model_for_weight_conversion`"
        raise InputError(where, what, start, "an adapter for the base as published", fix)
    refuse_unknown(given, {*LoraConfig.model_fields, *WITHOUT_EFFECT, "peft_type", "bias", "init_lora_weights"}, where)
    return read_fields(LoraConfig, given, where)


def refuse_unknown(given: dict[str, Any], known: set[str], where: Path) -> None:
    """Raises:
    InputError: a field that is not understood is set, so the file may mean something else than is read.
    """
    for key in sorted(given.keys() - known):
        if given[key]:
            raise InputError(where, f"`{short_value(key)}` is not supported", given[key], "it unset")


def is_bounded(pattern: str) -> bool:
    """Whether matching a name takes no more than a bounded number of steps."""
    if len(pattern) > MOST_LETTERS:
        return False
    rest, words = WORDS.subn("x", pattern)
    rest, repeated = REPEATED.subn("x", rest)
    return words + repeated <= MOST_OPEN and LITERAL.fullmatch(CLASS.sub("x", rest)) is not None


@lru_cache(4096)  # more than the standard library keeps: an adapter may have a pattern for each layer
def compile_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def first_match(patterns: dict[str, T], module: str, otherwise: T) -> T:
    """The value of the first pattern that the end of the name matches."""
    matching = (value for key, value in patterns.items() if compile_pattern(rf"(.*\.)?({key})$").match(module))
    return next(matching, otherwise)


def is_named(module: str, names: list[str]) -> bool:
    """Whether the name is, or ends with, one of these."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def as_list(names: list[str] | str | None) -> list[str]:
    return [names] if isinstance(names, str) and names else list(names or ())
