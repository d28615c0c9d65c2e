from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from functools import partial
    from pathlib import Path

    from loratory.config import BaseEntry, adapter_entry, domain_options
    from loratory.training.continued import continue_base
    from loratory.training.launch import run_processes

    params, entry = snakemake.params, BaseEntry(**snakemake.params.entry)
    adapter = adapter_entry(params.adapter)
    train = partial(
        continue_base,
        snakemake.wildcards.base,
        entry,
        Path(snakemake.input.start).parent,
        adapter,
        Path(snakemake.input.data[0]).parent,
        domain_options(entry.continued.corpus, "Task", params.task),
        max_valid=params.max_valid,
        device=params.device,
        checkpoints=params.checkpoints,
        code=params.code,
        out=Path(snakemake.output[0]).parent,
    )
    run_processes(adapter.training.processes, params.device, train)
