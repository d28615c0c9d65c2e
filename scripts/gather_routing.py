from loratory.job import log_job

with log_job(snakemake):
    from loratory.evaluation.routing import gather_routing

    gather_routing(dict(snakemake.input.items()), snakemake.wildcards.mixture, snakemake.output[0])
