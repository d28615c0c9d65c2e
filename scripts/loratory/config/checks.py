"""Whether everything that a config names exists and fits together."""

from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from loratory import registry
from loratory.adapters.contract import BaseWeightsMethod
from loratory.bases.options import PACKED, BaseEntry
from loratory.config.sections import (
    AdapterEntry,
    Compare,
    CompareMixers,
    CompareSplits,
    Corpus,
    Evaluation,
    MixtureEntry,
    StageEntry,
    Study,
    entries_by_name,
)
from loratory.domains.contract import FilesOptions
from loratory.errors import SECRET, InputError, short_value


def check_names(config: Study, where: str) -> None:
    """Everything that is named exists and fits.

    Raises:
        InputError: the first thing that does not.
    """
    domains, bases, general = entries_by_name(config.domains), config.bases, entries_by_name(config.general)
    if not domains and not any(base.pretrain for base in bases.values()):
        raise InputError(
            f"{where}: domains", "no domain is configured", expected=", ".join(registry.registered_names("domain"))
        )
    check_results(where, config)
    check_shared(where, config)
    check_floor(f"{where}: evaluation", config.evaluation)
    check_decoding(f"{where}: evaluation.decoding", config)
    corpora: list[tuple[str, Corpus]] = [(f"domains.{name}", corpus) for name, corpus in domains.items()]
    for key, corpus in [*corpora, *((f"general.{name}", corpus) for name, corpus in general.items())]:
        if isinstance(corpus.source, FilesOptions):
            check_source(f"{where}: {key}.source", corpus.source)
        for conflict in (corpus.task.dataset_conflict(corpus.dataset), corpus.dataset.source_conflict(corpus.source)):
            if conflict:
                raise InputError(f"{where}: {key}", conflict)
    for name, entry in bases.items():
        check_base(f"{where}: bases.{name}", entry, config)
        check_continued(f"{where}: bases.{name}.continued", name, config)
    for domain, given in domains.items():
        check_transfer(f"{where}: domains.{domain}.transfer", domain, given.transfer, domains)
        for base, adapters in given.adapters.items():
            at = f"{where}: domains.{domain}.adapters"
            require_known(at, "base", base, bases)
            if bases[base].family == "folding":
                raise InputError(f"{at}.{base}", "a folding base takes no adapters", fix="leave it out")
            check_fit(f"{at}.{base}", domain, bases[base])
            if conflict := given.task.base_conflict(bases[base]):
                raise InputError(f"{at}.{base}", conflict)
            for adapter in adapters:
                require_known(f"{at}.{base}", "adapter", adapter, config.adapters)
                check_plain_weights(f"{at}.{base}", config.adapters[adapter], base, bases[base])
                check_augmentation(f"{at}.{base}", config.adapters[adapter], adapter, domain)
    for name, adapter_entry in config.adapters.items():
        check_sharding(f"{where}: adapters.{name}.training.sharding", adapter_entry)
    for name, mixture in config.mixtures.items():
        check_mixture(f"{where}: mixtures.{name}", mixture, config)
    for name, stage in config.lifecycle.items():
        check_stage(f"{where}: lifecycle.{name}", stage, config)
    if config.compare is not None:
        check_comparison(f"{where}: compare", config.compare, config)
    if config.compare_mixers is not None:
        check_mixers(f"{where}: compare_mixers", config.compare_mixers, config)
    if config.compare_splits is not None:
        check_splits(f"{where}: compare_splits", config.compare_splits, config)
    if config.serve_throughput is not None:
        check_served(f"{where}: serve_throughput.base", config.serve_throughput.base, config)
    if config.folding is not None:
        require_known(f"{where}: folding", "base", config.folding, bases)
        if bases[config.folding].family != "folding":
            at = f"{where}: folding"
            raise InputError(at, "not a folding base", bases[config.folding].family, "a base of family folding")


def check_transfer(at: str, domain: str, others: Collection[str], domains: Mapping[str, object]) -> None:
    """Systems of other entries of the same domain can be tested on one, if there are such entries."""
    own = registry.registered_domain(domain)
    allowed = [name for name in domains if name != domain and registry.registered_domain(name) == own]
    for other in others:
        require_known(at, f"entry of {own}", other, allowed)


def check_floor(where: str, evaluation: Evaluation) -> None:
    """Raises:
    InputError: fewer records are scored than a number needs.
    """
    most, fewest = evaluation.max_records, evaluation.min_records
    if most is not None and most < fewest:
        raise InputError(where, f"max_records {most} is below min_records {fewest}", fix="no number would be printed")


def check_decoding(at: str, config: Study) -> None:
    """Raises:
    InputError: transcripts of a base that writes greedily are to be written otherwise.
    """
    if config.evaluation.decoding.is_greedy:
        return
    for domain, given in entries_by_name(config.domains).items():
        for base in given.adapters:
            family = config.bases[base].family if base in config.bases else ""
            if family == "causal" and "text" in registry.base_families(domain).get(family, ()):
                what = f"{base} writes transcripts greedily: only a base of family whisper can do more"
                raise InputError(at, what, family, fix="leave it out")


def check_results(where: str, config: Study) -> None:
    """What is made must not lie where what is read lies."""
    results = Path(config.pathvars.results).resolve()
    for name, read in {"data_root": config.data_root, "bases_root": config.bases_root}.items():
        if read and Path(read).is_dir() and Path(read).resolve().is_relative_to(results):
            what = f"`{name}` ({short_value(read)}) lies in the folder that results would be written into"
            raise InputError(f"{where}: pathvars.results", what, config.pathvars.results, "a folder of its own")


def check_shared(where: str, config: Study) -> None:
    if config.shared and Path(config.shared).resolve() == Path(config.pathvars.results).resolve():
        what = "the studies' shared folder holds this study's results"
        raise InputError(f"{where}: shared", what, config.shared, "a folder of its own, such as results/shared")


def check_source(at: str, source: FilesOptions) -> None:
    """Locations can be found: a path without wildcards, or an https address whose digest is given."""
    for location in source.all_locations():
        if "://" not in location:
            check_path(at, location)
            continue
        check_address(at, location)
        if location not in source.sha256:
            raise InputError(at, "a download without a digest", location, "its digest under `sha256` of this source")
    for location in source.sha256:
        if location not in source.all_locations() or "://" not in location:
            what, fix = "a digest of what is not downloaded", "leave it out; digests of local files are noted anyway"
            raise InputError(f"{at}.sha256", what, location, "an address that this source names", fix)


def check_address(at: str, address: str) -> None:
    """It is of https, and may stand in logs and in what is said of the data."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise InputError(at, f"no address: {error}", address, "https, or a local path") from None
    if parts.scheme != "https" or not parts.hostname:
        raise InputError(at, "unsupported address", address, "https, or a local path")
    if parts.username or parts.password or SECRET.search(address):
        what, fix = "an address with a name, password or token in it", "fetch the file by hand and give its path"
        raise InputError(at, what, parts.hostname, fix=fix)


def check_path(at: str, path: str) -> None:
    """Braces hold wildcards to Snakemake, angle brackets `pathvars`; no file's name has control characters."""
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in path):
        raise InputError(at, "a control character in a path", path)
    if {"{", "}"} & {*path}:
        raise InputError(at, "unknown placeholder or a brace in a path", path, "`{data_root}`, `{resources}` or none")
    if {"<", ">"} & {*path}:
        raise InputError(at, "an angle bracket in a path", path, fix="rename the file or folder")


def check_base(at: str, base: BaseEntry, config: Study) -> None:
    if base.precision in PACKED and config.resources.device == "cpu":
        fix = "`resources.device: cuda`, or `precision: bf16`"
        raise InputError(
            f"{at}.precision", "needs a GPU with CUDA, and models run on the CPU", base.precision, fix=fix
        )
    if base.path:
        check_path(f"{at}.path", base.path)
    if base.audio:
        encoder = base.audio.encoder
        require_known(f"{at}.audio.encoder", "base", encoder, config.bases)
        if config.bases[encoder].family != "whisper":
            family = config.bases[encoder].family
            raise InputError(f"{at}.audio.encoder", "not a Whisper base", family, "a base of family whisper")
    at = f"{at}.pretrain.domains" if base.pretrain else f"{at}.audio.corpus"
    corpora = [str(domain) for domain in base.corpora]
    for domain in corpora:
        require_known(at, "corpus of `general`", domain, entries_by_name(config.general))
        check_fit(at, domain, base)
    if base.audio and not any(registry.is_spoken(domain) for domain in corpora):
        raise InputError(at, "no spoken corpus to train the audio projector on", ", ".join(corpora), "a spoken domain")


def check_continued(at: str, name: str, config: Study) -> None:
    """A base that learns on begins as another one of its family, and in the end as one that does not.

    Raises:
        InputError: it does not, or what it learns from and by is not in the config.
    """
    base, continued = config.bases[name], config.bases[name].continued
    if continued is None:
        return
    require_known(f"{at}.base", "base", continued.base, config.bases)
    require_known(f"{at}.corpus", "corpus of `general`", continued.corpus, entries_by_name(config.general))
    require_known(f"{at}.adapter", "adapter", continued.adapter, config.adapters)
    check_fit(f"{at}.corpus", continued.corpus, base)
    if (sharding := config.adapters[continued.adapter].training.sharding) != "none":
        what = "the adapter is added to a base that is whole"
        raise InputError(f"{at}.adapter", what, f"sharding: {sharding}", "an adapter with `sharding: none`")
    start, passed = config.bases[continued.base], {name}
    if start.family != base.family:
        raise InputError(f"{at}.base", "a base of another family", start.family, f"one of family {base.family}")
    if start.has_audio:
        raise InputError(f"{at}.base", "a base with an audio prefix cannot learn on", continued.base, "one without")
    following = continued.base
    while (link := config.bases[following].continued) is not None and following not in passed:
        passed.add(following)
        require_known(f"{at}.base", "base", link.base, config.bases)
        following = link.base
    if following in passed:
        raise InputError(f"{at}.base", "it begins as itself in the end", continued.base, "a base of another origin")


def check_fit(at: str, domain: str, base: BaseEntry) -> None:
    """The domain has a task for bases of this family, and a base that is given spoken records has an audio encoder."""
    families = registry.base_families(domain)
    if base.family not in families:
        what = f"the domain {domain} has no task for a base of family {base.family}"
        raise InputError(at, what, expected=f"a base of family {' or '.join(families)}")
    if registry.is_spoken(domain) and base.family == "causal" and not base.has_audio:
        if base.path and not Path(base.path).exists():
            raise InputError(at, f"the base's folder {base.path} does not exist", reason="missing")
        raise InputError(at, f"this base has no audio encoder for {domain}", expected="a causal base with `audio:`")


def check_plain_weights(at: str, adapter: AdapterEntry, name: str, base: BaseEntry) -> None:
    """Weights that are packed can be read, and neither moved, differentiated nor cut into parts."""
    if base.precision in PACKED and adapter.training.sharding != "none":
        what = f"processes hold plain weights in parts, and {name} holds them packed"
        raise InputError(at, what, base.precision, "a base with `precision: bf16` or `fp32`", "leave `sharding` out")
    if base.precision in PACKED and adapter.needs_plain_weights:
        what = f"{adapter.method} needs the base's weights as they are, and {name} holds them packed"
        raise InputError(at, what, base.precision, "a base with `precision: bf16` or `fp32`")


def check_sharding(at: str, adapter: AdapterEntry) -> None:
    """A base that processes hold in parts is frozen."""
    if adapter.training.sharding != "none" and isinstance(adapter, BaseWeightsMethod):
        what, fix = f"{adapter.method} trains the base's own weights, of which no process holds all", "leave it out"
        raise InputError(at, what, adapter.training.sharding, "none", fix)


def check_augmentation(at: str, adapter: AdapterEntry, name: str, domain: str) -> None:
    """Only sound is changed for training."""
    if adapter.training.augmentation is not None and not registry.is_spoken(domain):
        fix = f"train {name} on spoken domains alone, or leave its `training.augmentation` out"
        raise InputError(at, f"{name} augments sound, and {domain} has none", name, "a spoken domain", fix)


def check_mixture(at: str, mixture: MixtureEntry, config: Study) -> None:
    require_known(f"{at}.base", "base", mixture.base, config.bases)
    family = config.bases[mixture.base].family
    if family not in mixture.families:
        what, expected = f"{mixture.base} cannot be mixed on", f"a base of family {' or '.join(mixture.families)}"
        raise InputError(f"{at}.base", what, family, expected)
    if len(mixture.experts) < mixture.fewest_experts:
        raise InputError(
            f"{at}.experts", "too few experts", len(mixture.experts), f"at least {mixture.fewest_experts}"
        )
    check_features(at, mixture, family)
    check_options(at, mixture)
    domains = entries_by_name(config.domains)
    for domain, adapter in mixture.experts.items():
        require_known(f"{at}.experts", "domain", domain, domains)
        require_known(f"{at}.experts.{domain}", "adapter", adapter, config.adapters)
        trained = domains[domain].adapters
        if adapter not in trained.get(mixture.base, ()):
            on = [base for base, adapters in trained.items() if adapter in adapters]
            what = f"{domain} trains {adapter} on {' and '.join(on) or 'no base'}"
            fix = f"name it under domains.{domain}.adapters.{mixture.base}"
            raise InputError(f"{at}.experts.{domain}", what, adapter, f"an adapter of base {mixture.base}", fix)


def check_options(at: str, mixture: MixtureEntry) -> None:
    """Options that speak of the experts, which the mixer's own file does not know."""
    top_k = getattr(mixture, "top_k", None)
    if "top_k" in mixture.model_fields_set and top_k is not None and top_k > len(mixture.experts):
        raise InputError(f"{at}.top_k", "more than there are experts", top_k, f"at most {len(mixture.experts)}")
    shares = getattr(mixture, "shares", None)
    if isinstance(shares, dict) and shares:
        for domain in shares:
            require_known(f"{at}.shares", "domain", domain, mixture.experts)
        if missing := mixture.experts.keys() - shares.keys():
            raise InputError(f"{at}.shares", "an expert without a share", min(missing), "all experts, or none")
        if not any(shares.values()):
            raise InputError(f"{at}.shares", "every share is 0, so nothing is mixed", expected="one that is not")


def check_stage(at: str, stage: StageEntry, config: Study) -> None:
    require_known(f"{at}.base", "base", stage.base, config.bases)
    base, domains = config.bases[stage.base], entries_by_name(config.domains)
    check_unpacked(f"{at}.base", stage.base, base)
    if base.family not in stage.families:
        what, expected = f"{stage.procedure} does not work on {stage.base}", " or ".join(stage.families)
        raise InputError(f"{at}.base", what, base.family, f"a base of family {expected}")
    if conflict := stage.base_conflict(base.family):
        raise InputError(f"{at}.base", conflict, stage.base)
    if len(stage.domains) < stage.fewest_domains:
        raise InputError(f"{at}.domains", "too few domains", len(stage.domains), f"at least {stage.fewest_domains}")
    for domain in stage.domains:
        require_known(f"{at}.domains", "domain", domain, domains)
        check_fit(f"{at}.domains", domain, base)
        if stage.one_domain and registry.registered_domain(domain) != registry.registered_domain(stage.domains[0]):
            what, expected = f"{domain} and {stage.domains[0]} are measured by other numbers", "entries of one domain"
            raise InputError(f"{at}.domains", what, ", ".join(stage.domains), expected)
    require_known(f"{at}.adapter", "adapter", stage.adapter, config.adapters)
    adapter = config.adapters[stage.adapter]
    if adapter.method != "lora":
        raise InputError(f"{at}.adapter", f"{stage.adapter} is no LoRA", adapter.method, "an adapter of method lora")
    for name, families in stage.further_bases.items():
        check_further_base(at, name, families or (base.family,), stage, config)
    for domain in stage.domains:
        check_augmentation(f"{at}.domains", adapter, stage.adapter, domain)
    if adapter.training.validate_every:
        what, every = "a stage takes every adapter as its last step left it", adapter.training.validate_every
        raise InputError(f"{at}.adapter", what, f"validate_every: {every}", "an adapter with `validate_every: 0`")
    if adapter.training.processes > 1:
        what, expected = "the trainings of a stage run in one process", "an adapter with `processes: 1`"
        raise InputError(f"{at}.adapter", what, f"processes: {adapter.training.processes}", expected)
    if len(adapter.training.learning_rates) > 1:
        what, rates = "a stage has no grid of learning rates", [*adapter.training.learning_rates]
        raise InputError(f"{at}.adapter", what, rates, "an adapter with one rate", "take the one that was best")


def check_unpacked(at: str, name: str, base: BaseEntry) -> None:
    if base.precision in PACKED:
        what = f"a stage changes weights or measures them, and {name} holds them packed"
        raise InputError(at, what, base.precision, "a base with `precision: bf16` or `fp32`")


def check_further_base(at: str, name: str, families: Collection[str], stage: StageEntry, config: Study) -> None:
    at = f"{at}.{next(key for key, value in stage if value == name and key != 'base')}"
    require_known(at, "base", name, config.bases)
    base = config.bases[name]
    check_unpacked(at, name, base)
    if base.family not in families:
        what, expected = f"{stage.procedure} cannot take {name} for it", f"a base of family {' or '.join(families)}"
        raise InputError(at, what, base.family, expected)
    if base.family == config.bases[stage.base].family:
        for domain in stage.domains:
            check_fit(at, domain, base)


def check_features(at: str, mixture: MixtureEntry, family: str) -> None:
    if mixture.features and not (mixture.trained and mixture.reads == "hidden"):
        what, expected = "nothing of this mixer learns from the base's last states", "a trained mixer that reads them"
        raise InputError(f"{at}.features", what, mixture.mixer, expected, "leave `features` out")
    if mixture.features and mixture.training.max_examples:
        what, fix = "features are of all records of a split", "leave `features` or `training.max_examples` out"
        raise InputError(f"{at}.features", what, mixture.training.max_examples, fix=fix)
    if mixture.features and family == "whisper":
        what, fix = "a base that encodes frames and decodes tokens keeps no features", "leave `features` out"
        raise InputError(f"{at}.features", what, mixture.base, "a base of family causal or encoder", fix)


def check_comparison(at: str, compare: Compare, config: Study) -> None:
    """Everything is compared with one adapter, so every domain must train it."""
    require_known(f"{at}.base", "base", compare.base, config.bases)
    domains = entries_by_name(config.domains).items()
    given = {name: domain.adapters[compare.base] for name, domain in domains if domain.adapters.get(compare.base)}
    if not given:
        fix = "name it under `adapters` of a domain"
        raise InputError(f"{at}.base", "no domain trains an adapter on this base", compare.base, fix=fix)
    for domain, adapters in given.items():
        if compare.against not in adapters:
            fix = f"name it under domains.{domain}.adapters.{compare.base}"
            what = f"{domain} does not train it on {compare.base}"
            raise InputError(f"{at}.against", what, compare.against, f"one of {', '.join(adapters)}", fix)


def check_mixers(at: str, compare: CompareMixers, config: Study) -> None:
    """Recovery is a share of what the experts gain, so all mixtures must have the same."""
    require_known(f"{at}.base", "base", compare.base, config.bases)
    mixtures = {name: mixture for name, mixture in config.mixtures.items() if mixture.base == compare.base}
    require_known(f"{at}.against", "mixture", compare.against, mixtures)
    experts = mixtures[compare.against].experts
    for name, mixture in mixtures.items():
        if mixture.experts != experts:
            what = f"mixture {name} has other experts than {compare.against}"
            given, expected = (", ".join(map("@".join, zip(e.values(), e))) for e in (mixture.experts, experts))
            raise InputError(f"{at}.against", what, given, expected, "compare it in a study of its own")
    for name, domains in compare.prompts.items():
        check_prompt(f"{at}.prompts.{name}", domains, experts, config.bases[compare.base])


def check_splits(at: str, compare: CompareSplits, config: Study) -> None:
    """All entries are of one domain and train the adapter."""
    require_known(f"{at}.base", "base", compare.base, config.bases)
    domains = entries_by_name(config.domains)
    own = registry.registered_domain(compare.entries[0])
    allowed = [name for name in domains if registry.registered_domain(name) == own]
    for name in compare.entries:
        require_known(f"{at}.entries", f"entry of {own}", name, allowed or domains)
        if compare.adapter not in domains[name].adapters.get(compare.base, ()):
            fix = f"name it under domains.{name}.adapters.{compare.base}"
            raise InputError(f"{at}.adapter", f"{name} does not train it on {compare.base}", compare.adapter, fix=fix)


def check_served(at: str, base: str, config: Study) -> None:
    """The base writes texts and has adapters."""
    require_known(at, "base", base, config.bases)
    if config.bases[base].family != "causal":
        raise InputError(at, "what is served must write text", config.bases[base].family, "a causal base")
    if not any(given.adapters.get(base) for given in entries_by_name(config.domains).values()):
        raise InputError(at, "no adapter is trained on this base", base, "a base with adapters")


def check_prompt(at: str, domains: tuple[str, ...], experts: Mapping[str, str], base: BaseEntry) -> None:
    if base.family != "causal":
        raise InputError(at, "only a causal base reads texts of several domains", base.family, "no prompts")
    if len(domains) < 2:
        raise InputError(at, "too few domains", len(domains), "at least 2")
    for place, domain in enumerate(domains):
        require_known(at, "domain", domain, experts)
        if place and registry.is_spoken(domain):
            raise InputError(at, "audio stands before all text", domain, fix="name it first")


def require_known(at: str, noun: str, name: str, allowed: Collection[str]) -> None:
    if name not in allowed:
        raise registry.unknown_name_error(at, noun, name, allowed)
