from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.domains.dataset import audit_split

    domain, out = snakemake.wildcards.domain, Path(snakemake.output[0])
    dataset = domain_options(domain, "Dataset", snakemake.params.dataset)
    audit_split(
        domain=domain,
        folder=out.parent,
        dataset=dataset,
        out=out,
        pretraining=[Path(file).parent for file in snakemake.input.pretraining],
        transfer={name: Path(file).parent for name, file in snakemake.params.transfer.items()},
    )
