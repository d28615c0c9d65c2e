from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.tables import write_domain_table

    files = snakemake.input
    write_domain_table(
        files.metrics,
        snakemake.output[0].removesuffix(".html"),
        audits=files.audits,
        about=read_json(files.base)["note"],
        banner=snakemake.params.banner,
    )
