from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.splits import write_splits_table

    params, out = snakemake.params, snakemake.output[0].removesuffix(".html")
    about = read_json(snakemake.input.base)["note"]
    write_splits_table(params.entries, params.adapter, out, about=about, banner=params.banner)
