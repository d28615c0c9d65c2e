from loratory.job import log_job

with log_job(snakemake, snakemake.params.adapter["training"]["threads"]):
    from pathlib import Path

    from loratory.config import Evaluation, adapter_entry, domain_options, stage_entry
    from loratory.lifecycle.run import run_stage

    params = snakemake.params
    run_stage(
        name=snakemake.wildcards.stage,
        entry=stage_entry(params.entry),
        base_folder=Path(snakemake.input.base[0]).parent,
        adapter=adapter_entry(params.adapter),
        data={domain: Path(file).parent for domain, file in params.data.items()},
        tasks={domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
        seeds=params.seeds,
        evaluation=Evaluation(**params.evaluation),
        device=params.device,
        checkpoints=Path(params.checkpoints),
        out=Path(snakemake.output.measures).parent,
        further={base: Path(file).parent for base, file in params.further.items()},
    )
