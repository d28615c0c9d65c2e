from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.transcripts import write_error_table

    title = f"Worst words of {snakemake.wildcards.domain} on {snakemake.wildcards.base}"
    out = snakemake.output[0].removesuffix(".html")
    write_error_table(read_json(snakemake.input[0]), out, title, snakemake.params.banner)
