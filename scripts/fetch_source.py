from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_source
    from loratory.data.files import file_sha256
    from loratory.data.sharing import share_folder
    from loratory.domains.fetch import MANIFEST, fetch_source

    domain, params = snakemake.wildcards.domain, snakemake.params
    facts = {"raw": domain, "files": {path: file_sha256(path) for path in snakemake.input}}
    facts |= {name: params[name] for name in ("source", "listed", "population", "seed", "code")}
    share_folder(
        store=params.shared,
        facts=facts,
        out=Path(snakemake.output[0]).parent,
        make=lambda folder: fetch_source(
            domain=domain,
            source=domain_source(domain, params.source),
            population=params.population,
            seed=params.seed,
            out=folder,
        ),
        names=[MANIFEST],
    )
