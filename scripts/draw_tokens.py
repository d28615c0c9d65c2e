from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.figures import tokens

    tokens(snakemake.input[0], snakemake.wildcards.mixture, snakemake.output[0], snakemake.params.banner)
