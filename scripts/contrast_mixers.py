from loratory.job import logged

with logged(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import options
    from loratory.evaluation.recovery import Asked, recover
    from loratory.evaluation.score import Floor

    given, params, asked = snakemake.input, snakemake.params, {}
    predictions = iter(given.predictions)
    for (domain, task), data, baselines in zip(params.tasks.items(), given.data, given.baselines):
        files = {seed: next(predictions) for seed in params.seeds}
        asked[domain] = Asked(files, Path(data).parent, options(domain, "Task", task), baselines)
    drawn = (params.against, params.resamples, 0, Floor(*params.floor), snakemake.output[0])
    recover(snakemake.wildcards.base, asked, params.experts, params.mixtures, *drawn)
