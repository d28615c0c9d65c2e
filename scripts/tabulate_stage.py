from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.stages import write_stage_table

    params, out = snakemake.params, snakemake.output[0].removesuffix(".html")
    notes = dict.fromkeys(read_json(base)["note"] for base in snakemake.input.bases)
    write_stage_table(snakemake.input.contrast, out, about="; ".join(filter(None, notes)), banner=params.banner)
