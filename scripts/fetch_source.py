from loratory.job import logged

with logged(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import source
    from loratory.domains.fetch import fetch_source

    domain, params = snakemake.wildcards.domain, snakemake.params
    out = Path(snakemake.output[0]).parent
    fetch_source(domain, source(domain, params.source), params.population, params.seed, out)
