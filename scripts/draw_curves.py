from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.figures import draw_curves

    draw_curves(snakemake.params.runs, snakemake.output[0], snakemake.params.banner)
