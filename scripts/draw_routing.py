from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.figures import draw_routing

    draw_routing(snakemake.input[0], snakemake.output[0], snakemake.params.banner)
