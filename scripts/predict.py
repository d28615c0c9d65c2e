from loratory.job import log_job

with log_job(snakemake.log[0], snakemake.params.threads):
    from pathlib import Path

    from loratory.config import Evaluation, domain_options
    from loratory.evaluation.predict import TrainedModels, predict_domain

    given, params, domain = snakemake.input, snakemake.params, snakemake.wildcards.domain

    def by_seed(files, names):
        folders = iter([Path(file).parent for file in files])
        return {seed: {name: next(folders) for name in names} for seed in params.seeds}

    adapters, mixtures = by_seed(given.adapters, params.systems), by_seed(given.mixtures, params.mixtures)
    trained = {seed: TrainedModels(adapters[seed], mixtures[seed]) for seed in params.seeds}
    predict_domain(
        domain,
        Path(given.data[0]).parent,
        domain_options(domain, "Task", params.task),
        Path(given.base).parent,
        trained,
        params.asked,
        Evaluation(**params.evaluation),
        params.device,
        Path(snakemake.output[0]).parent,
    )
