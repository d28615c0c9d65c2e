from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.transcripts import write_speed_table

    write_speed_table(list(snakemake.input), snakemake.output[0])
