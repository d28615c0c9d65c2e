from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from pathlib import Path

    from loratory.evaluation.fold import fold_predictions

    files, params = snakemake.input, snakemake.params
    fold_predictions(
        domain=snakemake.wildcards.domain,
        predictions=params.predictions,
        baselines=files.baselines,
        references=next(iter(files.get("references", [])), None),
        limit=params.folded,
        model_folder=Path(files.folding).parent,
        out=Path(snakemake.output[0]).parent,
        begun=Path(params.checkpoints, "structures", snakemake.wildcards.domain, snakemake.wildcards.base),
        device=params.device,
        max_length=params.max_length,
    )
