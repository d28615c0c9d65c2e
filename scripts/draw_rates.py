from loratory.job import log_job

with log_job(snakemake.log[0]):
    from loratory.reporting.method_figures import draw_rates

    runs, params = dict(zip(snakemake.params.names, snakemake.input)), snakemake.params
    draw_rates(runs, params.against, snakemake.output[0], params.banner)
