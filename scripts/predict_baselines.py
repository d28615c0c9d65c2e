from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.baselines import predict_baselines

    domain, params = snakemake.wildcards.domain, snakemake.params
    predict_baselines(
        domain=domain,
        data=Path(snakemake.input.data[0]).parent,
        task=domain_options(domain, "Task", params.task),
        max_records=params.max_records,
        max_valid=params.max_valid,
        samples=params.samples,
        ranked_users=params.ranked_users,
        out=snakemake.output[0],
        transfer={name: Path(file).parent for name, file in params.transfer.items()},
    )
