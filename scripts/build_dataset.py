from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.domains.dataset import build_dataset
    from loratory.domains.fetch import open_source

    domain, params = snakemake.wildcards.domain, snakemake.params
    build_dataset(
        domain=domain,
        files=open_source(domain, Path(snakemake.input[0]).parent),
        dataset=domain_options(domain, "Dataset", params.dataset),
        seed=params.seed,
        out=Path(snakemake.output[0]).parent,
    )
