from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.data.files import read_json
    from loratory.reporting.folding import table

    files, out = snakemake.input, snakemake.output[0].removesuffix(".html")
    table(files.metrics, out, about=read_json(files.base)["note"], banner=snakemake.params.banner)
