from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.score import Floor, score_domain

    domain, files, params = snakemake.wildcards.domain, snakemake.input, snakemake.params
    predictions = list(zip(params.seeds, files.predictions))
    baselines, structures = (next(iter(files.get(name, [])), None) for name in ("baselines", "structures"))
    task, data = domain_options(domain, "Task", params.task), Path(files.data[0]).parent
    out = snakemake.output[0]
    score_domain(
        domain,
        snakemake.wildcards.base,
        predictions,
        baselines,
        data,
        task,
        structures,
        params.resamples,
        0,
        Floor(*params.floor),
        out,
    )
