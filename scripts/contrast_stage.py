from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options, stage_entry
    from loratory.evaluation.score import Floor
    from loratory.lifecycle.contrast import contrast_stage

    params = snakemake.params
    contrast_stage(
        name=snakemake.wildcards.stage,
        entry=stage_entry(params.entry),
        folder=Path(snakemake.input.measures).parent,
        data={domain: Path(file).parent for domain, file in params.data.items()},
        tasks={domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
        seeds=params.seeds,
        resamples=params.resamples,
        seed=0,
        floor=Floor(*params.floor),
        out=snakemake.output[0],
        baselines=params.baselines,
    )
