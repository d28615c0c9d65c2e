from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.adapter["training"]["threads"]):
    from pathlib import Path

    from loratory.config import adapter_entry, domain_options
    from loratory.training.sweep import train_sweep

    domain, params, out = snakemake.wildcards.domain, snakemake.params, Path(snakemake.output.runs).parent
    train_sweep(
        domain,
        Path(snakemake.input.data[0]).parent,
        domain_options(domain, "Task", params.task),
        Path(snakemake.input.base).parent,
        adapter_entry(params.adapter),
        params.seeds,
        params.device,
        out.parents[3] / "checkpoints",
        params.max_valid,
        out,
    )
