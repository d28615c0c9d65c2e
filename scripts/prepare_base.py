from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.config import BaseEntry, domain_options
    from loratory.training.prepare import prepare_base

    params = snakemake.params
    prepare_base(
        name=snakemake.wildcards.base,
        entry=BaseEntry(**params.entry),
        general={domain: Path(file).parent for domain, file in params.general.items()},
        tasks={domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
        audio_encoder=next((Path(file).parent for file in snakemake.input.get("encoder", [])), None),
        device=params.device,
        checkpoints=Path(params.checkpoints),
        out=Path(snakemake.output[0]).parent,
        folder=params.folder,
    )
