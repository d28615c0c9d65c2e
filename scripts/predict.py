from loratory.job import logged

with logged(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.config import Evaluation, options
    from loratory.evaluation.predict import predict

    wildcards, params = snakemake.wildcards, snakemake.params
    predict(
        wildcards.domain,
        Path(snakemake.input.data[0]).parent,
        options(wildcards.domain, "Task", params.task),
        Path(snakemake.input.base).parent,
        dict(zip(params.systems, [Path(path).parent for path in snakemake.input.adapters])),
        dict(zip(params.mixtures, [Path(path).parent for path in snakemake.input.mixtures])),
        params.asked,
        Evaluation(**params.evaluation),
        int(wildcards.seed),
        params.device,
        snakemake.output.predictions,
        snakemake.output.routing,
    )
