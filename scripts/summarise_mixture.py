from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.data.files import read_json
    from loratory.reporting.tables import summary

    files, params, out = snakemake.input, snakemake.params, snakemake.output[0].removesuffix(".html")
    told = {"about": read_json(files.base)["note"], "banner": params.banner}
    told |= {"routing": files.routing, "mixer": params.mixer, "experts": params.experts}
    summary(list(files.metrics), out, mixture=snakemake.wildcards.mixture, **told)
