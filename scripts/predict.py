from loratory.job import log_job

with log_job(snakemake, snakemake.params.threads):
    from pathlib import Path

    from loratory.config import Evaluation, domain_options
    from loratory.evaluation.predict import TrainedModels, predict_domain

    files, params, domain = snakemake.input, snakemake.params, snakemake.wildcards.domain
    trained = {
        seed: TrainedModels(
            adapters={name: Path(file).parent for name, file in adapters.items()},
            mixtures={name: Path(file).parent for name, file in params.mixtures[seed].items()},
            cuts=params.cuts,
        )
        for seed, adapters in params.adapters.items()
    }
    predict_domain(
        domain=domain,
        data=Path(files.data[0]).parent,
        task=domain_options(domain, "Task", params.task),
        base_folder=Path(files.base).parent,
        trained=trained,
        asked=params.asked,
        evaluation=Evaluation(**params.evaluation),
        device=params.device,
        out=Path(snakemake.output[0]).parent,
    )
