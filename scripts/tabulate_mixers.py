from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.data.files import read_json
    from loratory.reporting.mixers import table

    files, params, out = snakemake.input, snakemake.params, snakemake.output[0].removesuffix(".html")
    told = {"about": read_json(files.base)["note"], "banner": params.banner}
    table(files.contrast, list(files.routes), list(zip(params.names, files.runs)), out, **told)
