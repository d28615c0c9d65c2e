from loratory.job import log_job

with log_job(snakemake.log[0]):
    from loratory.data.files import read_json
    from loratory.reporting.tables import write_domain_table

    files, out = snakemake.input, snakemake.output[0].removesuffix(".html")
    about = read_json(files.base)["note"]
    write_domain_table(files.metrics, out, audits=files.audits, about=about, banner=snakemake.params.banner)
