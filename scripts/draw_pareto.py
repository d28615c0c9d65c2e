from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.method_figures import draw_pareto

    params = snakemake.params
    draw_pareto(table=snakemake.input[0], against=params.against, out=snakemake.output[0], banner=params.banner)
