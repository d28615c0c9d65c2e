from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.training.features import write_features

    domain, files, params = snakemake.wildcards.domain, snakemake.input, snakemake.params
    write_features(
        domain=domain,
        data=Path(files.data).parent,
        task=domain_options(domain, "Task", params.task),
        split=snakemake.wildcards.split,
        base_folder=Path(files.base).parent,
        device=params.device,
        batch_tokens=params.batch_tokens,
        checkpoints=Path(params.checkpoints),
        out=Path(snakemake.output[0]).parent,
    )
