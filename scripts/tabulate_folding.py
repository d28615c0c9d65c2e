from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.folding import write_folding_table
    from loratory.reporting.formats import base_sentence

    files, out = snakemake.input, snakemake.output[0].removesuffix(".html")
    write_folding_table(files.metrics, out, about=base_sentence(files.base), banner=snakemake.params.banner)
