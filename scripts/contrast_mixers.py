from loratory.job import log_job

with log_job(snakemake):
    from loratory.config import domain_options
    from loratory.evaluation.recovery import contrast_mixers, predictions_by_domain
    from loratory.evaluation.score import Floor

    params = snakemake.params
    tasks = {domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()}
    contrast_mixers(
        base=snakemake.wildcards.base,
        asked=predictions_by_domain(params.predictions, params.data, tasks, params.baselines),
        experts=params.experts,
        mixtures=params.mixtures,
        against=params.against,
        resamples=params.resamples,
        seed=0,
        floor=Floor(*params.floor),
        out=snakemake.output[0],
    )
