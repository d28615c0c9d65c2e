from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
    from loratory.reporting.splits import write_splits_table

    params, out = snakemake.params, snakemake.output[0].removesuffix(".html")
    about = base_sentence(snakemake.input.base)
    write_splits_table(params.entries, params.adapter, out, about=about, banner=params.banner)
