from loratory.job import logged

with logged(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import options
    from loratory.domains.dataset import build_dataset
    from loratory.domains.fetch import open_source

    domain, params = snakemake.wildcards.domain, snakemake.params
    files = open_source(domain, Path(snakemake.input[0]).parent)
    out = Path(snakemake.output[0]).parent
    build_dataset(domain, files, options(domain, "Dataset", params.dataset), params.seed, out)
