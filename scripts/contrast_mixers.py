from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.recovery import DomainPredictions, contrast_mixers
    from loratory.evaluation.score import Floor

    given, params, asked = snakemake.input, snakemake.params, {}
    predictions = iter(given.predictions)
    for (domain, task), data, baselines in zip(params.tasks.items(), given.data, given.baselines):
        files = {seed: next(predictions) for seed in params.seeds}
        asked[domain] = DomainPredictions(files, Path(data).parent, domain_options(domain, "Task", task), baselines)
    drawn = (params.against, params.resamples, 0, Floor(*params.floor), snakemake.output[0])
    contrast_mixers(snakemake.wildcards.base, asked, params.experts, params.mixtures, *drawn)
