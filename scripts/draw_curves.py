from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.figures import curves

    curves(dict(zip(snakemake.params.names, snakemake.input)), snakemake.output[0], snakemake.params.banner)
