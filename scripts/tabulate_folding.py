from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.folding import write_folding_table

    files, out = snakemake.input, snakemake.output[0].removesuffix(".html")
    write_folding_table(files.metrics, out, about=read_json(files.base)["note"], banner=snakemake.params.banner)
