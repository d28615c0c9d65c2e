"""Names and slices of the config that rules are made of; nothing here knows a domain, a method or a mixer."""

import sys
from functools import cache
from inspect import isfunction, signature
from operator import attrgetter
from os.path import dirname, exists
from pathlib import Path
from signal import SIGTERM

from loratory import config as loratory_config
from loratory.adapters.ranks import cut_controls, cut_sources, rank_cuts
from loratory.config import entries_by_name, published_folder
from loratory.data.files import check_writable, lost_files
from loratory.data.splits import SPLITS
from loratory.dates import mend_dates, require_past_dates
from loratory.domains.fetch import listed_state
from loratory.errors import InputError
from loratory.locks import note_lock_owner, remove_lost_locks
from loratory.patterns import names_pattern
from loratory.provenance import adapter_code, base_code, code_digest, continued_code, domain_modules
from loratory.provenance import features_code, mixture_code, stage_code
from loratory.registry import code_path, family_outputs, is_folded, is_spoken, registered_domain
from loratory.signals import answer_aside
from loratory.strict_yaml import load_yaml

CONFIG_FILES = [*map(str, workflow.config_settings.configfiles or workflow.configfiles or ["config"])]
try:
    check_writable(".snakemake")
    for path in filter(exists, CONFIG_FILES):
        load_yaml(path)  # once more: Snakemake takes the last of two equal keys
    STUDY = loratory_config.read_config(config, CONFIG_FILES[-1], workflow.config_settings.config)
    RESULTS = workflow.pathvars.apply("<results>")
    if workflow.is_main_process:
        if said := remove_lost_locks():
            logger.info(said)
        if {"--touch", "-t"} & {*sys.argv}:
            mend_dates(RESULTS)
        require_past_dates(RESULTS)
        loratory_config.require_inputs(STUDY, CONFIG_FILES[-1])
        loratory_config.check_library_options(STUDY, CONFIG_FILES[-1], RESULTS)
except InputError as error:
    raise WorkflowError(str(error))

DOMAINS = entries_by_name(STUDY.domains)
GENERAL = entries_by_name(STUDY.general)
CORPORA = {"data": DOMAINS, "general": GENERAL}
POPULATION = {"data": "domain", "general": "general"}
ASKED = {"data": ("test", "valid", "sample", "rank"), "general": ("test",)}  # what systems are asked of each corpus
SEEDS = STUDY.seeds
FLOOR = [STUDY.evaluation.min_records, STUDY.evaluation.min_groups]  # below it no number is printed
CHECKPOINTS = f"{RESULTS}/checkpoints"  # of jobs that go on where they were stopped; no rule's output
BANNER = "simulated data: shows the pipeline, not science" if loratory_config.is_simulated(STUDY) else ""
CONTINUED = {name: base.continued for name, base in STUDY.bases.items() if base.continued}
SPOKEN = {*filter(is_spoken, {*DOMAINS, *GENERAL})}
TRACKS = [(domain, base) for domain, given in DOMAINS.items() for base in given.adapters]
TRANSCRIBED = [
    (domain, base)
    for domain, base in TRACKS
    if domain in SPOKEN and "text" in family_outputs(domain, STUDY.bases[base].family)
]


wildcard_constraints:
    corpus=names_pattern(CORPORA),
    domain=names_pattern([*DOMAINS, *GENERAL]),
    base=names_pattern(STUDY.bases),
    adapter=names_pattern(STUDY.adapters),
    mixture=names_pattern(STUDY.mixtures),
    stage=names_pattern(STUDY.lifecycle),


def plain(model, without=()):
    """A slice of the config as plain values: comparable between runs, so that only its users run again."""
    return model.model_dump(mode="json", exclude={*without})


# What a prediction depends on.
EVALUATION = plain(STUDY.evaluation, without=["resamples", "folded", "max_folded_length", "min_records", "min_groups"])


def adapter_of(stage):
    return STUDY.adapters[STUDY.lifecycle[stage].adapter]


def bases_of(stage):
    """The manifests of a stage's bases, the entry's own first."""
    entry = STUDY.lifecycle[stage]
    return [f"<results>/bases/{base}/base.json" for base in (entry.base, *entry.further_bases)]


def local_files(source):
    """A source's own files. What is fetched from an address is none, and a job finds what a running study has lost."""
    return [] if source.kind == "simulate" else [path for path in source.file_paths() if exists(path)]


def table_files(tables):
    """All files of tables, whose paths are given without suffix."""
    return [f"{table}{suffix}" for table in tables for suffix in (".html", ".tsv", ".md", ".tex")]


def folders_of(files):
    """The folders in which manifests stand, with all that is there. They are carried to a job; the manifests, which hold
    digests, say whether it is due. Rules name folders first, as a storage does not fetch one that is begun."""
    return ancient([dirname(file) for file in files])


def audio_of(corpus, domains):
    """The recordings that the records of datasets name."""
    spoken = [f"<results>/raw/{corpus}/{domain}" for domain in domains if domain in SPOKEN]
    return ancient([*spoken, *(f"{folder}/files.json" for folder in spoken)])


code_of_adapter = cache(adapter_code)  # of thousands of jobs few differ


def per_attempt(amount):
    """A resource of which the second attempt asks for twice as much."""

    def scaled(wildcards, attempt):
        return amount * attempt

    return scaled


def note_signatures(rules):
    """Of the functions that rules are made of: Snakemake asks for each several times a job and is slow to find it out."""
    for info in map(attrgetter("ruleinfo"), rules):
        parts = filter(None, (info.input, info.params, info.resources))
        given = [info.threads, *(value for part in parts for value in (*part[0], *part[1].values()))]
        for function in filter(isfunction, given):
            function.__signature__ = signature(function)


def training_of(wildcards):
    """How an adapter is trained: a job's own, or the one that its base learns on by."""
    name = wildcards.get("adapter") or CONTINUED[wildcards.base].adapter
    return STUDY.adapters[name].training


def training_threads(wildcards):
    return training_of(wildcards).processes * training_of(wildcards).threads


def training_memory(wildcards, attempt):
    return training_of(wildcards).processes * STUDY.resources.mem_mb * attempt


def training_gpus(wildcards):
    """One for each of the processes that share a training."""
    processes = training_of(wildcards).processes
    return processes if processes > 1 and STUDY.resources.device == "cuda" else STUDY.resources.gpu


def corpora_of(domain):
    """Where a domain's systems are scored: on it and, for what adaptation cost, on its general population."""
    return [corpus for corpus, given in CORPORA.items() if domain in given]


def pretraining_of(wildcards):
    """What bases learn from in the domain of a dataset: nothing of it may stand in the dataset's test split."""
    own = registered_domain(wildcards.domain)
    known = [name for name in GENERAL if registered_domain(name) == own] if wildcards.corpus == "data" else []
    return collect("<results>/general/{domain}/train.parquet", domain=known)


def transfer_of(wildcards):
    """{name: train split} of the entries whose systems are tested on this one."""
    names = DOMAINS[wildcards.domain].transfer if wildcards.get("corpus", "data") == "data" else []
    return {name: f"<results>/data/{name}/train.parquet" for name in names}


def metrics_of(domain, base, results="<results>"):
    return [f"{results}/metrics/{corpus}/{domain}/{base}.json" for corpus in corpora_of(domain)]


def baselines_of(domain, base):
    """Controls without a language model; none beside a masked base, which reads both sides of what it is asked."""
    masked = STUDY.bases[base].family == "masked"
    return [] if masked else [f"<results>/predictions/data/{domain}/baselines.parquet"]


def stage_baselines(stage):
    entry = STUDY.lifecycle[stage]
    return [file for domain in entry.domains for file in baselines_of(domain, entry.base)]


def systems_on(corpus, domain, base):
    """{system: (domain trained on, adapter)}: a domain's own adapters, then those of other entries and experts."""
    homes = [domain, *(DOMAINS[domain].transfer if corpus == "data" else [])]
    found = {
        f"{adapter}@{home}": (home, adapter) for home in homes for adapter in DOMAINS[home].adapters.get(base, ())
    }
    for name in mixtures_on(corpus, base):
        for other, adapter in STUDY.mixtures[name].experts.items():
            found.setdefault(f"{adapter}@{other}", (other, adapter))
    return found


def cuts_on(corpus, domain, base):
    """Adapters at lower ranks, and plain LoRAs cut by SVD to hold them against, where methods are compared."""
    if corpus != "data" or STUDY.compare is None or base != STUDY.compare.base:
        return []
    return rank_cuts({name: STUDY.adapters[name] for name in DOMAINS[domain].adapters[base]}, STUDY.compare.against)


def cut_systems(corpus, domain, base):
    """{system: (system that is cut, rank)} of `cuts_on`."""
    found = cut_sources(cuts_on(corpus, domain, base))
    return {f"{name}@{domain}": (f"{adapter}@{domain}", rank) for name, (adapter, rank) in found.items()}


def cutting_methods(corpus, domain, base):
    return [code_path("method", STUDY.adapters[cut.adapter].method) for cut in cuts_on(corpus, domain, base)]


def mixtures_on(corpus, base):
    """Only on what is studied: a general population tells what a domain's own adapters cost."""
    return [name for name, mixture in STUDY.mixtures.items() if corpus == "data" and mixture.base == base]


def curves_on(base):
    """{name: learning curves} of everything trained on a base."""
    pairs = [(domain, adapter) for domain, given in DOMAINS.items() for adapter in given.adapters.get(base, ())]
    mixtures = [name for name in mixtures_on("data", base) if STUDY.mixtures[name].trained]
    found = {f"{adapter}@{domain}": f"adapters/{domain}/{base}/{adapter}" for domain, adapter in pairs}
    found |= {name: f"mixtures/{name}" for name in mixtures}
    return {name: f"<results>/{folder}/runs.parquet" for name, folder in found.items()}


def ranked_on(base):
    """{`adapter@domain`: `run.json` of each seed} of adapters on a base whose layers end with ranks of their own."""
    pairs = [(domain, adapter) for domain, given in DOMAINS.items() for adapter in given.adapters.get(base, ())]
    return {
        f"{adapter}@{domain}": [f"<results>/adapters/{domain}/{base}/{adapter}/seed{seed}/run.json" for seed in SEEDS]
        for domain, adapter in pairs
        if STUDY.adapters[adapter].learns_ranks
    }


def is_structured(domain, base):
    """Whether structures are made of a domain's samples on a base."""
    return (
        STUDY.folding is not None
        and is_folded(domain)
        and "sample" in DOMAINS[domain].task.choose_outputs(family_outputs(domain, STUDY.bases[base].family))
    )


def structures_of(wildcards):
    folded = wildcards.get("corpus", "data") == "data" and is_structured(wildcards.domain, wildcards.base)
    return ["<results>/structures/{domain}/{base}/scores.parquet"] if folded else []


def base_sources(wildcards):
    """What a base is made of: files of its folder, general data that it learns from, its audio encoder; by name."""
    base = STUDY.bases[wildcards.base]
    folder = base.path or published_folder(STUDY, wildcards.base)
    found = [Path(folder), *Path(folder).rglob("*")] if folder else []
    encoder = [f"<results>/bases/{base.audio.encoder}/base.json"] if base.audio else []
    return {
        "files": sorted(str(path) for path in found if path.is_file()),
        "general": collect("<results>/general/{domain}/train.parquet", domain=base.corpora),
        "audits": ancient(collect("<results>/general/{domain}/audit.json", domain=base.corpora)),
        "folders": folders_of(encoder) + audio_of("general", base.corpora),
        "encoder": encoder,
    }


def base_threads(base):
    training = STUDY.bases[base].training
    return training.threads if training else 1


def experts_of(wildcards):
    mixture = STUDY.mixtures[wildcards.mixture]
    return [
        f"<results>/adapters/{domain}/{mixture.base}/{adapter}/seed{seed}/run.json"
        for domain, adapter in mixture.experts.items()
        for seed in SEEDS
    ]


def mixtures_for(wildcards):
    return collect(
        "<results>/mixtures/{mixture}/seed{seed}/mixture.json",
        seed=SEEDS,
        mixture=mixtures_on(wildcards.corpus, wildcards.base),
    )


def kept_results(wildcards):
    """Folders of a study to keep. One that has lost a file is made again: Snakemake looks at folders as a whole."""
    adapters = [f"{d}/{base}/{name}" for d, base in TRACKS for name in DOMAINS[d].adapters[base]]
    kept = [
        *(f"{RESULTS}/bases/{name}" for name in STUDY.bases),
        *(f"{RESULTS}/adapters/{adapter}/seed{seed}" for adapter in adapters for seed in SEEDS),
        *(f"{RESULTS}/mixtures/{name}/seed{seed}" for name in STUDY.mixtures for seed in SEEDS),
        *(f"{RESULTS}/structures/{domain}/{base}" for domain, base in TRACKS if is_structured(domain, base)),
        f"{RESULTS}/report",
    ]
    workflow.dag.forcefiles.update(filter(lost_files, kept))
    return kept


def features_of(wildcards):
    mixture = STUDY.mixtures[wildcards.mixture]
    return collect(
        "<results>/features/{domain}/{base}/{split}/index.json",
        domain=mixture.experts,
        base=mixture.base,
        split=mixture.splits if mixture.features else (),
    )


def adapters_for(wildcards):
    return [
        f"<results>/adapters/{home}/{wildcards.base}/{adapter}/seed{seed}/run.json"
        for seed in SEEDS
        for home, adapter in systems_on(wildcards.corpus, wildcards.domain, wildcards.base).values()
    ]


def routing_of(wildcards):
    """{domain: how a mixture routed there with each seed}."""
    mixture = STUDY.mixtures[wildcards.mixture]
    path = "<results>/predictions/data/{domain}/{base}/seed{seed}.routing.json"
    return {d: collect(path, domain=d, base=mixture.base, seed=SEEDS) for d in mixture.experts}


def domains_of(mixture):
    """The domains of a mixture's experts, in their order."""
    return list(STUDY.mixtures[mixture].experts)


def by_name(names, files):
    """{name: file}, of files that an input lists in the order of `names`."""
    return dict(zip(names, map(str, files), strict=True))


def first_by_name(names, files):
    """{name: the first of its files}, of an input that lists as many files for each of `names`, in their order."""
    return by_name(names, files[:: len(files) // len(names)]) if files else {}


def by_names(outer, inner, files):
    """{outer name: {inner name: file}}, of files that an input lists in this order."""
    found = iter(map(str, files))
    return {name: {key: next(found) for key in inner} for name in outer}
