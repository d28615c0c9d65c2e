from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.evaluation.transcripts import worst_words
    from loratory.reporting.transcripts import write_error_table

    domain, params = snakemake.wildcards.domain, snakemake.params
    task = domain_options(domain, "Task", params.task)
    rows = worst_words(domain, params.predictions, Path(snakemake.input.data).parent, task, count=20)
    out = snakemake.output[0].removesuffix(".html")
    write_error_table(rows, out, f"Worst words of {domain} on {snakemake.wildcards.base}", params.banner)
