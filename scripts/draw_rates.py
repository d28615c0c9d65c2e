from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.method_figures import rates

    runs, params = dict(zip(snakemake.params.names, snakemake.input)), snakemake.params
    rates(runs, params.against, snakemake.output[0], params.banner)
