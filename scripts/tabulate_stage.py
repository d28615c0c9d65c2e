from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
    from loratory.reporting.stages import write_stage_table

    params, out = snakemake.params, snakemake.output[0].removesuffix(".html")
    about = "; ".join(filter(None, dict.fromkeys(map(base_sentence, snakemake.input.bases))))
    write_stage_table(snakemake.input.contrast, out, about=about, banner=params.banner)
