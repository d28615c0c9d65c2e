from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.tokens import route_tokens

    params = snakemake.params
    route_tokens(
        base_folder=Path(snakemake.input.base).parent,
        mixtures={name: Path(file).parent for name, file in params.mixtures.items()},
        prompts=params.prompts,
        data={domain: Path(file).parent for domain, file in params.data.items()},
        tasks={domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
        device=params.device,
        out=snakemake.output[0],
    )
