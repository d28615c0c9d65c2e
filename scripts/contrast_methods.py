from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.contrast import contrast_methods
    from loratory.evaluation.score import Floor

    wildcards, files, params = snakemake.wildcards, snakemake.input, snakemake.params
    predictions = list(zip(params.seeds, files.predictions))
    task, data = domain_options(wildcards.domain, "Task", params.task), Path(files.data[0]).parent
    asked = (files.baselines, data, task, params.against, params.resamples, 0, Floor(*params.floor))
    contrast_methods(wildcards.domain, wildcards.base, predictions, *asked, snakemake.output[0])
