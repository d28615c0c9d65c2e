from loratory.job import log_job

with log_job(snakemake.log[0]):
    from loratory.reporting.figures import draw_token_weights

    draw_token_weights(snakemake.input[0], snakemake.wildcards.mixture, snakemake.output[0], snakemake.params.banner)
