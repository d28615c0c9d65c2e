from loratory.job import log_job

with log_job(snakemake, snakemake.params.adapter["training"]["threads"]):
    from functools import partial
    from pathlib import Path

    from loratory.config import adapter_entry, domain_options
    from loratory.training.launch import run_processes
    from loratory.training.sweep import train_sweep

    domain, files, params = snakemake.wildcards.domain, snakemake.input, snakemake.params
    adapter = adapter_entry(params.adapter)
    train = partial(
        train_sweep,
        domain=domain,
        data=Path(files.data[0]).parent,
        task=domain_options(domain, "Task", params.task),
        base_folder=Path(files.base).parent,
        adapter=adapter,
        seeds=params.seeds,
        device=params.device,
        checkpoints=Path(params.checkpoints),
        max_valid=params.max_valid,
        out=Path(snakemake.output.runs).parent,
    )
    run_processes(adapter.training.processes, params.device, train)
