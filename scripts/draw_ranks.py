from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.method_figures import draw_ranks

    draw_ranks(snakemake.params.adapters, snakemake.output[0], snakemake.params.banner)
