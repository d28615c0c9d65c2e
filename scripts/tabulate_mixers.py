from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
    from loratory.reporting.mixers import write_mixer_table

    files, params = snakemake.input, snakemake.params
    write_mixer_table(
        contrast=files.contrast,
        routes=files.routes,
        costs=files.costs,
        runs=params.runs,
        out=snakemake.output[0].removesuffix(".html"),
        about=base_sentence(files.base),
        banner=params.banner,
    )
