from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
    from loratory.reporting.stages import write_stage_table

    params, out = snakemake.params, snakemake.output[0].removesuffix(".html")
    write_stage_table(snakemake.input.contrast, out, about=base_sentence(snakemake.input.base), banner=params.banner)
