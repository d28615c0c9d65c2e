from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.contrast import contrast_methods
    from loratory.evaluation.score import Floor

    domain, files, params = snakemake.wildcards.domain, snakemake.input, snakemake.params
    contrast_methods(
        domain=domain,
        base=snakemake.wildcards.base,
        predictions=params.predictions,
        baselines=next(iter(files.get("baselines", [])), None),
        data=Path(files.data[0]).parent,
        task=domain_options(domain, "Task", params.task),
        against=params.against,
        cuts=params.cuts,
        resamples=params.resamples,
        seed=0,
        floor=Floor(*params.floor),
        out=snakemake.output[0],
    )
