from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.figures import draw_token_weights

    draw_token_weights(
        routes=snakemake.input[0],
        mixture=snakemake.wildcards.mixture,
        out=snakemake.output[0],
        banner=snakemake.params.banner,
    )
