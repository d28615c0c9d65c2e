from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.tokens import route_tokens

    given, params = snakemake.input, snakemake.params
    route_tokens(
        Path(given.base).parent,
        {name: Path(file).parent for name, file in zip(params.mixtures, given.mixtures)},
        params.prompts,
        {domain: Path(file).parent for domain, file in zip(params.tasks, given.data)},
        {domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
        params.device,
        snakemake.output[0],
    )
