"""The config file as typed models: the one source of keys, defaults, checks and the JSON schema.

`sections` has the models of its sections and of the whole `Study`; `models` fills in what is registered, so that a new
domain, family, method or mixer adds its keys without an edit; `checks` holds what is named against what there is;
`reading` reads a file. Reading a config imports neither torch nor pandas.
"""

from loratory.bases.options import Audio, BaseEntry, Pretrain, WhisperOptions
from loratory.config.models import (
    MIXTURE_FIELDS,
    STAGE_FIELDS,
    SWEEP_FIELDS,
    adapter_entry,
    config_model,
    domain_options,
    domain_source,
    mixture_entry,
    stage_entry,
)
from loratory.config.reading import (
    PROJECT,
    RESOURCES,
    check_library_options,
    is_simulated,
    load_config,
    published_folder,
    read_config,
    require_inputs,
)
from loratory.config.sections import (
    AdapterEntry,
    Compare,
    CompareMixers,
    CompareSplits,
    Corpus,
    Domain,
    Evaluation,
    MixtureEntry,
    Resources,
    StageEntry,
    Study,
    entries_by_name,
)
from loratory.training.schedule import Schedule, Sweep, Training

__all__ = [
    "MIXTURE_FIELDS",
    "PROJECT",
    "RESOURCES",
    "STAGE_FIELDS",
    "SWEEP_FIELDS",
    "AdapterEntry",
    "Audio",
    "BaseEntry",
    "Compare",
    "CompareMixers",
    "CompareSplits",
    "Corpus",
    "Domain",
    "Evaluation",
    "MixtureEntry",
    "Pretrain",
    "Resources",
    "Schedule",
    "StageEntry",
    "Study",
    "Sweep",
    "Training",
    "WhisperOptions",
    "adapter_entry",
    "check_library_options",
    "config_model",
    "domain_options",
    "domain_source",
    "entries_by_name",
    "is_simulated",
    "load_config",
    "mixture_entry",
    "published_folder",
    "read_config",
    "require_inputs",
    "stage_entry",
]
