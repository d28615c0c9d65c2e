from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.method_figures import pareto

    pareto(snakemake.input[0], snakemake.params.against, snakemake.output[0], snakemake.params.banner)
