from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.reporting.method_figures import draw_ranks

    adapters = {name: [Path(run).parent for run in runs.values()] for name, runs in snakemake.params.runs.items()}
    draw_ranks(adapters, snakemake.output[0], snakemake.params.banner)
