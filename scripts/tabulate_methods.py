from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.methods import write_method_tables

    files, params, output = snakemake.input, snakemake.params, snakemake.output
    write_method_tables(
        contrasts=files.contrasts,
        runs=params.runs,
        out=output.methods.removesuffix(".html"),
        costs_out=output.costs.removesuffix(".html"),
        about=read_json(files.base)["note"],
        banner=params.banner,
    )
