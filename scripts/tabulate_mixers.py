from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.mixers import write_mixer_table

    files, params = snakemake.input, snakemake.params
    write_mixer_table(
        contrast=files.contrast,
        routes=files.routes,
        costs=files.costs,
        runs=params.runs,
        out=snakemake.output[0].removesuffix(".html"),
        about=read_json(files.base)["note"],
        banner=params.banner,
    )
