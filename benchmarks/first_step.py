"""How near the first step of a method's training is to that of full fine-tuning.

    python benchmarks/first_step.py

LoRA-GA and LoRA-SB start where the first step is to follow the full gradient G. Measured on the shipped mini_lm with
the demo's proteins and the ranks of `config/methods.yaml`: the cosine between −G and the change of all adapted weights
in one short step, G taken where training starts and on the same batch. Once by plain gradient descent, which the
theorems of the papers are about, and once by AdamW, which trains; full fine-tuning's own AdamW step beside them. Means
over three seeds.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402

from loratory.adapters import core  # noqa: E402
from loratory.adapters.contract import Method  # noqa: E402
from loratory.adapters.methods import lora, lora_ga, lora_sb  # noqa: E402
from loratory.bases.core import Base, Encoded, load_base  # noqa: E402
from loratory.bases.prepare import prepare_folder  # noqa: E402
from loratory.config import load_config  # noqa: E402
from loratory.domains.dataset import build_dataset  # noqa: E402
from loratory.domains.examples import domain_examples, read_records  # noqa: E402
from loratory.domains.protein.simulate import simulate  # noqa: E402
from loratory.domains.protein.sources import Files  # noqa: E402
from loratory.training.session import AdapterSession  # noqa: E402

METHODS: dict[str, Method] = {
    "LoRA": lora.Method(rank=8),
    "LoRA-GA": lora_ga.Method(rank=8),
    "LoRA-SB": lora_sb.Method(rank=32),
}
SEEDS, STEP = (0, 1, 2), 1e-5  # the largest move of a parameter, short enough that products of moves are nothing

Gradients = dict[str, torch.Tensor]


def open_study(folder: Path) -> tuple[Base, list[Encoded], object]:
    """The shipped base, the demo's proteins as it reads them, and the demo's LoRA training."""
    study = load_config(ROOT / "config" / "methods.yaml")
    entry, domain = study.bases["mini_lm"], study.domains.protein
    prepare_folder(ROOT / entry.path, "mini_lm", entry, folder / "base")
    (folder / "raw").mkdir()
    made = simulate(domain.source, "domain", 0, folder / "raw")
    files = Files(**{name: str(folder / "raw" / file) for name, file in made.items()})
    build_dataset("protein", files, domain.dataset, 0, folder / "data")
    base = load_base(folder / "base")
    records = read_records(folder / "data", "train")
    items = [base.encode(example) for example in domain_examples("protein", records, domain.task, base.family)]
    return base, items, study.adapters["lora"].training


def descend(parameters: dict[str, torch.nn.Parameter], session: AdapterSession) -> torch.optim.Optimizer:
    steepest = max(float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None)
    return torch.optim.SGD(parameters.values(), lr=STEP / steepest)


def adam(parameters: dict[str, torch.nn.Parameter], session: AdapterSession) -> torch.optim.Optimizer:
    optimizer = session.create_optimizer(parameters, session.recipe)
    for group in optimizer.param_groups:
        group["lr"] = STEP
    return optimizer


def changes(session: AdapterSession) -> Gradients:
    return {name: layer.weight_delta().to_dense().double() for name, layer in session.layers.items()}


def cosine(one: Gradients, other: Gradients) -> float:
    """Between all layers' matrices, laid end to end."""
    parts = [torch.cat([found[name].double().flatten() for name in one]) for found in (one, other)]
    return float(torch.cosine_similarity(*parts, dim=0))


def measure(base: Base, items: list[Encoded], training, method: Method, seed: int, optimize: Callable) -> float:
    """The cosine between −G and the first step's change."""
    layers = core.attach(base.model, method, seed, base.heads)
    session = AdapterSession(base, method, layers, items, training.at_rate(0.004), seed)
    base.model.train()
    try:
        method.prepare_training(session)
        gradients, before = session.weight_gradients(1), changes(session)
        parameters = core.trainable_parameters(base.model)
        session.loss(session.batch(0)).backward()
        optimize(parameters, session).step()
        moved = {name: change - before[name] for name, change in changes(session).items()}
    finally:
        core.detach(base.model)
        base.model.eval().requires_grad_(False).zero_grad()
    return cosine(moved, {name: -gradient for name, gradient in gradients.items()})


def measure_full(base: Base, items: list[Encoded], training, seed: int) -> float:
    """The same of full fine-tuning's first AdamW step, which is the gradient's sign."""
    layers = core.attach(base.model, METHODS["LoRA"], seed, base.heads)
    session = AdapterSession(base, METHODS["LoRA"], layers, items, training.at_rate(0.004), seed)
    gradients = session.weight_gradients(1)
    core.detach(base.model)
    return cosine({name: gradient.sign() for name, gradient in gradients.items()}, gradients)


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        study = open_study(Path(folder))
        print("| method | gradient descent | AdamW |\n|---|---|---|")
        for name, method in METHODS.items():
            found = [mean(measure(*study, method, seed, optimize) for seed in SEEDS) for optimize in (descend, adam)]
            print(f"| {name} | {found[0]:.2f} | {found[1]:.2f} |")
        print(f"| full fine-tuning | 1.00 | {mean(measure_full(*study, seed) for seed in SEEDS):.2f} |")


if __name__ == "__main__":
    main()
