from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from pathlib import Path

    from loratory.evaluation.throughput import measure_arms

    params = snakemake.params
    measure_arms(
        base_folder=Path(snakemake.input.base).parent,
        folders={name: Path(file).parent for name, file in params.adapters.items()},
        count=int(snakemake.wildcards.number),
        out=snakemake.output[0],
        **params.asked,
        device=params.device,
    )
