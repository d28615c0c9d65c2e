from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.evaluation.fold import fold_predictions

    files, params = snakemake.input, snakemake.params
    fold_predictions(
        snakemake.wildcards.domain,
        list(zip(params.seeds, files.predictions)),
        files.baselines,
        next(iter(files.get("references", [])), None),
        params.folded,
        Path(files.folding).parent,
        Path(snakemake.output[0]).parent,
        params.device,
    )
