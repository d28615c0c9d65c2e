from loratory.job import log_job

with log_job(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import domain_source
    from loratory.domains.fetch import fetch_source

    domain, params = snakemake.wildcards.domain, snakemake.params
    out = Path(snakemake.output[0]).parent
    fetch_source(domain, domain_source(domain, params.source), params.population, params.seed, out)
