from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.assess import assess_folding
    from loratory.evaluation.score import Floor

    files, params = snakemake.input, snakemake.params
    assess_folding(
        domain=params.domain,
        base=snakemake.wildcards.base,
        data=Path(files.data).parent,
        model_folder=Path(files.base).parent,
        learnt=[Path(path).parent for path in files.get("learnt", [])] or None,
        dataset=domain_options(params.domain, "Dataset", params.dataset),
        limit=params.max_records,
        resamples=params.resamples,
        seed=0,
        floor=Floor(*params.floor),
        residues=snakemake.output.residues,
        metrics=snakemake.output.metrics,
        device=params.device,
        max_length=params.max_length,
    )
