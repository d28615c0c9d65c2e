from loratory.job import log_job

with log_job(snakemake):
    from loratory.data.files import read_json
    from loratory.reporting.tables import write_summary

    files, params, out = snakemake.input, snakemake.params, snakemake.output[0].removesuffix(".html")
    write_summary(
        list(files.metrics),
        out,
        mixture=snakemake.wildcards.mixture,
        experts=params.experts,
        recovery=files.recovery,
        routing=files.routing,
        run=files.run,
        about=read_json(files.base)["note"],
        banner=params.banner,
    )
