from loratory.job import logged

with logged(snakemake.log[0]):
    from pathlib import Path

    from loratory.config import options
    from loratory.domains.dataset import audit_split

    domain, out = snakemake.wildcards.domain, Path(snakemake.output[0])
    audit_split(domain, out.parent, options(domain, "Dataset", snakemake.params.dataset), out)
