from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.reporting.views import write_views

    domain, files, params = snakemake.wildcards.domain, snakemake.input, snakemake.params
    given = {name: next(iter(files.get(name, [])), None) for name in ("baselines", "structures", "references")}
    write_views(
        domain,
        snakemake.wildcards.base,
        snakemake.output[0],
        predictions=files.predictions,
        data=Path(files.data).parent,
        metrics=files.metrics,
        task=domain_options(domain, "Task", params.task),
        seed=params.seed,
        **given,
    )
