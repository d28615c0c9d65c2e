from loratory.job import log_job

with log_job(snakemake, snakemake.params.entry["training"]["threads"]):
    from pathlib import Path

    from loratory.config import domain_options, mixture_entry
    from loratory.training.mixture import train_mixture

    params = snakemake.params
    train_mixture(
        name=snakemake.wildcards.mixture,
        entry=mixture_entry(params.entry),
        base_folder=Path(snakemake.input.base).parent,
        experts={domain: Path(run).parent.parent for domain, run in params.experts.items()},  # holds all its seeds
        data={domain: Path(file).parent for domain, file in params.data.items()},
        tasks={domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
        seeds=params.seeds,
        device=params.device,
        checkpoints=Path(params.checkpoints),
        max_valid=params.max_valid,
        out=Path(snakemake.output.runs).parent,
        features={domain: Path(index).parent.parent for domain, index in params.features.items()},  # all its splits
    )
