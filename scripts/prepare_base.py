from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.config import BaseEntry, domain_options
    from loratory.training.prepare import prepare_base

    name, params, out = snakemake.wildcards.base, snakemake.params, Path(snakemake.output[0]).parent
    results, entry = out.parent.parent, BaseEntry(**params.entry)
    general = {domain: results / "general" / domain for domain in params.tasks}
    tasks = {domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()}
    ears = out.parent / entry.audio.encoder if entry.audio else None
    places = general, tasks, ears, params.device, results / "checkpoints", out
    prepare_base(name, entry, *places, folder=params.folder)
