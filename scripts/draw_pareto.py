from loratory.job import log_job

with log_job(snakemake.log[0]):
    from loratory.reporting.method_figures import draw_pareto

    draw_pareto(snakemake.input[0], snakemake.params.against, snakemake.output[0], snakemake.params.banner)
