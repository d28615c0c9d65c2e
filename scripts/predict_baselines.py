from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.baselines import predict_baselines

    domain, params = snakemake.wildcards.domain, snakemake.params
    task, data = domain_options(domain, "Task", params.task), Path(snakemake.input[0]).parent
    asked = (params.max_records, params.max_valid, params.samples)
    predict_baselines(domain, data, task, *asked, snakemake.output[0])
