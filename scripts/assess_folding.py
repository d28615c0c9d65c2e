from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.assess import assess_folding
    from loratory.evaluation.score import Floor

    files, params = snakemake.input, snakemake.params
    assess_folding(
        params.domain,
        snakemake.wildcards.base,
        Path(files.data).parent,
        Path(files.base).parent,
        [Path(path).parent for path in files.get("learnt", [])] or None,
        domain_options(params.domain, "Dataset", params.dataset),
        params.max_records,
        params.resamples,
        0,
        Floor(*params.floor),
        snakemake.output.residues,
        snakemake.output.metrics,
        params.device,
    )
