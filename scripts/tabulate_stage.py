from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.stages import write_stage_table

    params, out = snakemake.params, snakemake.output[0].removesuffix(".html")
    write_stage_table(
        snakemake.input.contrast, out, about=read_json(snakemake.input.base)["note"], banner=params.banner
    )
