from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.recovery import DomainPredictions, contrast_mixers
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
    contrast_mixers(
        base=snakemake.wildcards.base,
        asked=asked,
        experts=params.experts,
        mixtures=params.mixtures,
        against=params.against,
        resamples=params.resamples,
        seed=0,
        floor=Floor(*params.floor),
        out=snakemake.output[0],
    )
