from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_source
    from loratory.domains.fetch import fetch_source

    domain, params = snakemake.wildcards.domain, snakemake.params
    fetch_source(
        domain=domain,
        source=domain_source(domain, params.source),
        population=params.population,
        seed=params.seed,
        out=Path(snakemake.output[0]).parent,
    )
