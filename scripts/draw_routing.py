from loratory.job import logged

with logged(snakemake.log[0]):
    from loratory.reporting.figures import routing
    from loratory.reporting.routes import gather_routes

    picture, weights = snakemake.output
    gather_routes(list(zip(snakemake.params.domains, snakemake.input)), snakemake.wildcards.mixture, weights)
    routing(weights, picture, snakemake.params.banner)
