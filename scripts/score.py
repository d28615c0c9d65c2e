from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.score import Floor, score_domain

    domain, files, params = snakemake.wildcards.domain, snakemake.input, snakemake.params
    baselines, structures = (next(iter(files.get(name, [])), None) for name in ("baselines", "structures"))
    score_domain(
        domain=domain,
        base=snakemake.wildcards.base,
        predictions=params.predictions,
        baselines=baselines,
        data=Path(files.data[0]).parent,
        task=domain_options(domain, "Task", params.task),
        structures=structures,
        resamples=params.resamples,
        seed=0,
        floor=Floor(*params.floor),
        out=snakemake.output[0],
    )
