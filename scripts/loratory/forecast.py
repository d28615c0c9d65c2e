"""How long a study will take on CPUs, printed before it starts: its work over the measured speed of this machine.

A forecast and not a promise: it knows the config and the sizes of bases, and no lengths of records. What is done
already is counted too, and downloads are not.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np

from loratory.bases.memory import stored_parameters
from loratory.config import Study, Sweep, entries_by_name, published_folder

RECORD = 300  # positions of a test record that is read; domains differ from 150 to 600
FORWARD, BACKWARD = 2, 2  # operations of a pass for each weight and position; frozen weights have no gradient
HALF_PRECISION = 2.0  # times single precision's speed, where a CPU has instructions for bf16 (measured: 2 to 3)
HALF = 0.5  # share of Whisper's weights that a position meets: those of its encoder, or those of its decoder
SHARE = 0.5  # of the speed of a matrix product that a pass reaches
START = 12.0  # seconds of a job that loads a model: its imports, its base, its results
RULES = {"adapters": "train_sweep", "mixtures": "train_mixture", "predictions": "predict"}  # parts of the work


def study_forecast(study: Study, cores: int) -> str:
    """One line: about how many minutes a study takes on so many cores, from its beginning."""
    jobs = [*job_forecasts(study)]
    parts = {name: sum(seconds for part, seconds in jobs if part == name) for name in RULES}
    parts["starting jobs"] = START * len(jobs) / cores
    absent = [name for name in study.bases if not base_parameter_count(study, name)]
    left_out = f"; not counted, as of unknown size: {', '.join(absent)}" if absent else ""
    total, speed = sum(parts.values()) / 60, multiplication_speed()
    place = f"{cores} cores that multiply" if cores > 1 else "one core that multiplies"
    line = f"on {place} at {speed / 1e9:.0f} GFLOP/s"
    if total < 1.5:
        return f"This study takes about a minute {line}{left_out}."
    shares = ", ".join(f"{part} {seconds / 60:.0f}" for part, seconds in parts.items())
    return f"This study takes about {total:.0f} minutes {line} ({shares}){left_out}."


def forecast_by_rule(study: Study, cores: int) -> dict[str, float]:
    """{rule that opens a model: seconds that a job of it adds, in the mean, to a study on so many cores}."""
    found: dict[str, list[float]] = {}
    for part, seconds in job_forecasts(study):
        found.setdefault(RULES[part], []).append(START / cores + seconds)
    return {rule: sum(seconds) / len(seconds) for rule, seconds in found.items()}


def job_forecasts(study: Study) -> Iterator[tuple[str, float]]:
    """(part, seconds of work on all cores) of each job with a model."""
    sizes, speed = {name: base_parameter_count(study, name) for name in study.bases}, multiplication_speed()
    for part, base, positions, operations in model_jobs(study):
        share = HALF if study.bases[base].family == "whisper" else 1
        passes = RECORD if part == "predictions" and study.bases[base].family == "masked" else 1  # each token hidden
        times = HALF_PRECISION if study.bases[base].precision == "bf16" and has_half_precision() else 1
        yield part, passes * positions * operations * share * sizes[base] / (SHARE * speed * times)


def model_jobs(study: Study) -> Iterator[tuple[str, str, float, int]]:
    """(part, base, positions that it reads, operations for each weight and position) of each job with a model."""
    domains, general = entries_by_name(study.domains), entries_by_name(study.general)
    for domain, given in domains.items():
        for base, adapters in given.adapters.items():
            for adapter in adapters:
                yield "adapters", base, training_positions(study.adapters[adapter].training, study), FORWARD + BACKWARD
            mixtures = count_mixtures(study, domain, base)
            yield "predictions", base, prediction_positions(study, len(adapters), mixtures), FORWARD
            if domain in general:
                yield "predictions", base, prediction_positions(study, len(adapters), 0), FORWARD
    for entry in study.bases.values():
        if entry.continued:
            positions = training_positions(study.adapters[entry.continued.adapter].training, study)
            yield "adapters", entry.continued.base, positions, FORWARD + BACKWARD
    for mixture in study.mixtures.values():
        positions = len(mixture.experts) * training_positions(mixture.training, study) if mixture.trained else 0
        yield "mixtures", mixture.base, positions, 2 * FORWARD + BACKWARD  # the base alone first, then with experts


def training_positions(training: Sweep, study: Study) -> int:
    """Positions of the whole grid on the first seed and of one run for each other seed."""
    runs = len(training.learning_rates) + len(study.seeds) - 1
    return runs * training.steps * training.gradient_accumulation_steps * training.batch_tokens


def prediction_positions(study: Study, adapters: int, mixtures: int) -> int:
    """Positions of the base, and for each seed of adapters and mixtures; these and their shuffled gates read twice."""
    systems = 1 + len(study.seeds) * (adapters + 4 * mixtures + (adapters + 1 if mixtures else 0))
    return systems * (study.evaluation.max_records or 1000) * RECORD


def count_mixtures(study: Study, domain: str, base: str) -> int:
    return sum(mixture.base == base and domain in mixture.experts for mixture in study.mixtures.values())


def base_parameter_count(study: Study, base: str) -> int:
    """How many numbers the safetensors files of a base hold, by their headers or, before it is here, by the config."""
    folder = study.bases[base].path or published_folder(study, base)
    found = stored_parameters(folder) if folder else 0
    entry = study.bases[base]
    if entry.continued and not found and not entry.parameters:
        return base_parameter_count(study, entry.continued.base)
    return found or entry.parameters or 0


def has_half_precision() -> bool:
    """Whether this CPU computes in bf16, as Linux reports it; others emulate it."""
    path = Path("/proc/cpuinfo")
    return path.is_file() and re.search(r"\b(avx512_bf16|amx_bf16)\b", path.read_text()) is not None


@cache
def multiplication_speed(seconds: float = 0.3) -> float:
    """Operations a second of products of single-precision matrices, on all cores that numpy takes."""
    matrix = np.full((768, 768), 0.5, np.float32)
    matrix @ matrix
    started, products = perf_counter(), 0
    while perf_counter() - started < seconds:
        matrix @ matrix
        products += 1
    return products * 2 * len(matrix) ** 3 / (perf_counter() - started)
