from loratory.job import logged

with logged(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import options
    from loratory.evaluation.score import Floor, score

    domain, files, params = snakemake.wildcards.domain, snakemake.input, snakemake.params
    predictions = list(zip(params.seeds, files.predictions))
    baselines, structures = (next(iter(files.get(name, [])), None) for name in ("baselines", "structures"))
    task, data = options(domain, "Task", params.task), Path(files.data[0]).parent
    out = snakemake.output[0]
    score(
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
