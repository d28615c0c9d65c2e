from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.method_figures import draw_rates

    params = snakemake.params
    draw_rates(runs=params.runs, against=params.against, out=snakemake.output[0], banner=params.banner)
