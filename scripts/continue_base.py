from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from pathlib import Path

    from loratory.config import BaseEntry, adapter_entry, domain_options
    from loratory.training.continued import continue_base

    params, entry = snakemake.params, BaseEntry(**snakemake.params.entry)
    continue_base(
        snakemake.wildcards.base,
        entry,
        Path(snakemake.input.start).parent,
        adapter_entry(params.adapter),
        Path(snakemake.input.data[0]).parent,
        domain_options(entry.continued.corpus, "Task", params.task),
        max_valid=params.max_valid,
        device=params.device,
        checkpoints=params.checkpoints,
        code=params.code,
        out=Path(snakemake.output[0]).parent,
    )
