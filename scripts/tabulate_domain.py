from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.data.files import read_json
    from loratory.reporting.tables import table

    files, out = snakemake.input, snakemake.output[0].removesuffix(".html")
    about = read_json(files.base)["note"]
    table(files.metrics, out, audits=files.audits, about=about, banner=snakemake.params.banner)
