from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.figures import draw_layers

    draw_layers(snakemake.input[0], snakemake.output[0], snakemake.params.banner)
