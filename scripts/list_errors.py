from loratory.job import log_job

with log_job(snakemake):
    from pathlib import Path

    from loratory.config import domain_options
    from loratory.data.files import write_json
    from loratory.evaluation.transcripts import worst_words

    domain, params = snakemake.wildcards.domain, snakemake.params
    task = domain_options(domain, "Task", params.task)
    rows = worst_words(domain, params.predictions, Path(snakemake.input.data).parent, task, count=20)
    write_json(snakemake.output[0], rows)
