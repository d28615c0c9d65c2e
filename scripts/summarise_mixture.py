from loratory.job import log_job

with log_job(snakemake):
    from loratory.reporting.formats import base_sentence
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
        about=base_sentence(files.base),
        banner=params.banner,
    )
