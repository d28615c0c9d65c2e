from loratory.job import log_job

with log_job(snakemake.log[0]):
    from loratory.data.files import read_json
    from loratory.reporting.methods import write_method_tables

    files, params = snakemake.input, snakemake.params
    out = [path.removesuffix(".html") for path in (snakemake.output.methods, snakemake.output.costs)]
    told = {"about": read_json(files.base)["note"], "banner": params.banner}
    write_method_tables(list(files.contrasts), list(zip(params.names, files.runs)), *out, **told)
