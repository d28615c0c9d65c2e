from loratory.job import logged

with logged(snakemake.log[0], snakemake.params.entry["training"]["threads"]):
    from pathlib import Path

    from loratory.config import mixture, options
    from loratory.training.mixture import train_mixture

    name, params, out = snakemake.wildcards.mixture, snakemake.params, Path(snakemake.output[0]).parent
    entry = mixture(params.entry)
    every = len(entry.splits)  # a domain's splits are side by side, in one folder
    train_mixture(
        name,
        entry,
        Path(snakemake.input.base).parent,
        dict(zip(entry.experts, [Path(path).parent for path in snakemake.input.experts])),
        dict(zip(entry.experts, [Path(path).parent for path in snakemake.input.data[::every]])),
        {domain: options(domain, "Task", task) for domain, task in params.tasks.items()},
        int(snakemake.wildcards.seed),
        params.device,
        out.parents[2] / "checkpoints",
        out,
        dict(zip(entry.experts, [Path(path).parents[1] for path in snakemake.input.features[::every]])),
    )
