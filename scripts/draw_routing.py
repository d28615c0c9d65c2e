from loratory.job import log_job

with log_job(snakemake.log[0]):
    from loratory.reporting.figures import draw_routing
    from loratory.reporting.routes import gather_routes

    picture, weights = snakemake.output
    gather_routes(list(zip(snakemake.params.domains, snakemake.input)), snakemake.wildcards.mixture, weights)
    draw_routing(weights, picture, snakemake.params.banner)
