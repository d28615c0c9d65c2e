from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.reporting.site import write_site

    write_site(
        snakemake.output[0],
        title=snakemake.params.title,
        banner=snakemake.params.banner,
        metrics=snakemake.input.metrics,
        tables=snakemake.input.tables,
        figures=snakemake.input.figures,
        datasets={name: Path(card).parent for name, card in snakemake.params.datasets.items()},
        bases=snakemake.params.bases,
        views=snakemake.params.views,
        study=snakemake.params.study,
        targets=snakemake.params.targets,
    )
