from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.tables import summary

    out, params = snakemake.output[0].removesuffix(".html"), snakemake.params
    mixture = snakemake.wildcards.mixture
    summary(list(snakemake.input), out, mixture=mixture, experts=params.experts, banner=params.banner)
