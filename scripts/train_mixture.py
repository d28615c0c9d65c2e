from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.entry["training"]["threads"]):
    from pathlib import Path

    from loratory.config import domain_options, mixture_entry
    from loratory.training.mixture import train_mixture

    params, given, out = snakemake.params, snakemake.input, Path(snakemake.output.runs).parent
    train_mixture(
        snakemake.wildcards.mixture,
        mixture_entry(params.entry),
        Path(given.base).parent,
        {path.parents[3].name: path.parents[1] for path in map(Path, given.experts)},
        {path.parent.name: path.parent for path in map(Path, given.data)},
        {domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
        params.seeds,
        params.device,
        out.parents[1] / "checkpoints",
        params.max_valid,
        out,
        {path.parents[2].name: path.parents[1] for path in map(Path, given.features)},
    )
