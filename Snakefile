"""Loratory: from raw domain data to adapters, mixtures of adapters, and tables that can be trusted.

`snakemake` makes everything in the config; `snakemake tables` only what people read, from the metrics alone.
"""

import sys

from snakemake.utils import min_version

min_version("9.12")
sys.path.insert(0, f"{workflow.current_basedir.get_path_or_uri(secret_free=True)}/scripts")  # importable uninstalled

if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


pathvars:
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/bases.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/mix.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/fold.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/compare_mixers.smk"
include: "workflow/rules/compare_splits.smk"
include: "workflow/rules/site.smk"


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.compare_methods.input,
        rules.compare_mixers.input,
        rules.compare_splits.input,
        rules.write_site.output,


onstart:
    try:
        check_writable(RESULTS)
    except InputError as error:
        raise WorkflowError(str(error))
    cores = workflow.resource_settings.cores
    if STUDY.resources.device == "cpu" and cores:  # none is given where the jobs go to other machines
        from loratory.forecast import study_forecast

        print(study_forecast(STUDY, cores), file=sys.stderr)


onsuccess:
    from loratory.reporting.overview import print_overview

    scored = [f"{RESULTS}/metrics/data/{domain}/{base}.json" for domain, base in TRACKS]
    print_overview(filter(exists, scored), RESULTS, BANNER)
