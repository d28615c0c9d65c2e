from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from os.path import isfile
    from pathlib import Path

    from loratory.config import BaseEntry, domain_options
    from loratory.data.files import file_sha256
    from loratory.data.sharing import share_folder
    from loratory.training.prepare import prepare_base

    params, name, entry = snakemake.params, snakemake.wildcards.base, BaseEntry(**snakemake.params.entry)
    made_of = filter(isfile, snakemake.input)  # digests of folders stand in them
    facts = {"base": name, "files": sorted(map(file_sha256, made_of))}
    share_folder(
        store=params.shared if entry.training else None,  # what is not trained here is copied anyway
        facts=facts | {key: params[key] for key in ("entry", "tasks", "threads", "device", "code")},
        out=Path(snakemake.output[0]).parent,
        make=lambda folder: prepare_base(
            name=name,
            entry=entry,
            general={domain: Path(file).parent for domain, file in params.general.items()},
            tasks={domain: domain_options(domain, "Task", task) for domain, task in params.tasks.items()},
            audio_encoder=next((Path(file).parent for file in snakemake.input.get("encoder", [])), None),
            device=params.device,
            checkpoints=Path(params.checkpoints),
            out=folder,
            folder=params.folder,
        ),
    )
