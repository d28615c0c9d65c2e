from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
    from loratory.reporting.throughput import write_throughput_table

    files = snakemake.input
    write_throughput_table(
        list(files.measured),
        snakemake.output[0].removesuffix(".html"),
        about=base_sentence(files.base),
        banner=snakemake.params.banner,
    )
