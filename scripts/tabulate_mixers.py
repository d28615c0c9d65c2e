from loratory.job import log_job

with log_job(snakemake.log[0]):
    from loratory.data.files import read_json
    from loratory.reporting.mixers import write_mixer_table

    files, params, out = snakemake.input, snakemake.params, snakemake.output[0].removesuffix(".html")
    told = {"about": read_json(files.base)["note"], "banner": params.banner}
    write_mixer_table(files.contrast, list(files.routes), list(zip(params.names, files.runs)), out, **told)
