"""Whether `pretrain.architecture` of a base says what the Hugging Face config of its family has, in the right types.

Those configs take any key in silence, and are plain dataclasses otherwise. Importing them imports torch: this is for
the job that trains a base, and for the one process that plans it while there is none yet.
"""

import dataclasses
from typing import Any

from loratory.errors import InputError
from loratory.registry import unknown_name_error

CONFIGS = {
    "causal": "LlamaConfig",
    "encoder": "BertConfig",
    "folding": "EsmConfig",
    "masked": "EsmConfig",
    "whisper": "WhisperConfig",
}
FIXED: dict[str, dict[str, Any]] = {"folding": {"is_folding_model": True, "vocab_list": ["<pad>"], "vocab_size": 33}}


def check_architecture(where: str, family: str, architecture: dict[str, Any]) -> None:
    """Makes the config, to see that it can be made.

    Args:
        where: the config key. family: of the base; one that is not in `CONFIGS` is trained by code of its own.

    Raises:
        InputError: an unknown key, a value of another type or below 0, or sizes that do not fit together.
    """
    if family not in CONFIGS:
        return
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    kind = getattr(transformers, CONFIGS[family])
    check_fields(where, kind, architecture)
    try:
        kind(**architecture, **FIXED.get(family, {}))
    except (StrictDataclassError, ArithmeticError, TypeError, ValueError) as error:
        raise InputError(where, f"no such model can be made: {str(error).splitlines()[-1].strip()[:300]}") from None


def check_fields(where: str, kind: Any, values: dict[str, Any]) -> None:
    """As `check_architecture`, for one config and those that stand in its fields."""
    fields = {field.name for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            raise unknown_name_error(where, "key", key, fields)
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise InputError(f"{where}.{key}", "wrong value", value, "at least 0")
        if key in kind.sub_configs:
            if not isinstance(value, dict):
                raise InputError(f"{where}.{key}", "wrong value", value, "keys with values")
            check_fields(f"{where}.{key}", kind.sub_configs[key], value)
