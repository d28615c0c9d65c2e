from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.data.files import file_sha256, read_json
    from loratory.data.sharing import share_folder
    from loratory.domains.dataset import build_dataset
    from loratory.domains.fetch import open_source

    domain, params, raw = snakemake.wildcards.domain, snakemake.params, Path(snakemake.input.files)
    pretraining = [*map(Path, snakemake.input.pretraining)]
    facts = {"dataset": domain, "raw": read_json(raw), "pretraining": [*map(file_sha256, pretraining)]}
    share_folder(
        store=params.shared,
        facts=facts | {name: params[name] for name in ("dataset", "seed", "code")},
        out=Path(snakemake.output[0]).parent,
        make=lambda folder: build_dataset(
            domain=domain,
            files=open_source(domain, raw.parent),
            dataset=domain_options(domain, "Dataset", params.dataset),
            seed=params.seed,
            out=folder,
            pretraining=[file.parent for file in pretraining],
        ),
    )
