from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.figures import layers

    layers(snakemake.input[0], snakemake.output[0], snakemake.params.banner)
