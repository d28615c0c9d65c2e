from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.training.features import write_features

    wanted, params, out = snakemake.wildcards, snakemake.params, Path(snakemake.output[0]).parent
    write_features(
        wanted.domain,
        Path(snakemake.input.data).parent,
        domain_options(wanted.domain, "Task", params.task),
        wanted.split,
        Path(snakemake.input.base).parent,
        params.device,
        params.batch_tokens,
        out.parents[3] / "checkpoints",
        out,
    )
