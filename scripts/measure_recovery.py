from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.recovery import DomainPredictions, measure_recovery
    from loratory.evaluation.score import Floor

    params = snakemake.params
    asked = {
        domain: DomainPredictions(
            files=files,
            data=Path(params.data[domain]).parent,
            task=domain_options(domain, "Task", params.tasks[domain]),
            baselines=params.baselines[domain],
        )
        for domain, files in params.predictions.items()
    }
    measure_recovery(
        base=params.base,
        asked=asked,
        experts=params.experts,
        mixture=snakemake.wildcards.mixture,
        resamples=params.resamples,
        seed=0,
        floor=Floor(*params.floor),
        out=snakemake.output[0],
    )
