from loratory.job import logged

with logged(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import options
    from loratory.evaluation.recovery import Asked, recover

    params, predictions, asked = snakemake.params, iter(snakemake.input.predictions), {}
    for (domain, task), data in zip(params.tasks.items(), snakemake.input.data):
        files = {seed: next(predictions) for seed in params.seeds}
        asked[domain] = Asked(files, Path(data).parent, options(domain, "Task", task))
    drawn = (params.against, params.resamples, 0, snakemake.output[0])
    recover(snakemake.wildcards.base, asked, params.experts, params.mixtures, *drawn)
