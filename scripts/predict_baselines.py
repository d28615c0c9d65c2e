from loratory.job import logged

with logged(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import options
    from loratory.evaluation.baselines import predict_baselines

    domain, params = snakemake.wildcards.domain, snakemake.params
    task = options(domain, "Task", params.task)
    predict_baselines(domain, Path(snakemake.input[0]).parent, task, params.max_records, snakemake.output[0])
