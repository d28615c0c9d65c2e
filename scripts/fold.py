from loratory.job import logged

with logged(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.evaluation.fold import fold_predictions

    files, params = snakemake.input, snakemake.params
    predictions = list(zip(params.seeds, files.predictions))
    folder, out = Path(files.folding).parent, Path(snakemake.output[0]).parent
    fold_predictions(snakemake.wildcards.domain, predictions, params.references, folder, out, params.device)
