from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.tables import summary

    out = snakemake.output[0].removesuffix(".html")
    summary(list(snakemake.input), out, mixture=snakemake.wildcards.mixture, banner=snakemake.params.banner)
