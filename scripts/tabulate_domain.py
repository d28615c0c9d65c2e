from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
    from loratory.reporting.tables import write_domain_table

    files = snakemake.input
    write_domain_table(
        files.metrics,
        snakemake.output[0].removesuffix(".html"),
        audits=files.audits,
        about=base_sentence(files.base),
        banner=snakemake.params.banner,
    )
