from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
    from loratory.reporting.methods import write_method_tables

    files, params, output = snakemake.input, snakemake.params, snakemake.output
    write_method_tables(
        contrasts=files.contrasts,
        runs=params.runs,
        out=output.methods.removesuffix(".html"),
        costs_out=output.costs.removesuffix(".html"),
        about=base_sentence(files.base),
        banner=params.banner,
    )
