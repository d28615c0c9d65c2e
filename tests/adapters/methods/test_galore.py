"""GaLore (arXiv:2403.03507)."""

from math import ceil
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row
from methods.test_full_ft import body

from loratory.adapters import core
from loratory.adapters.methods.galore import Method, projection_basis

ROW = Row({"rank": 2, "update_gap": 3, "scale": 1.0}, lambda shapes, model: body(model))
SHAPES = {"tall": (12, 7), "wide": (7, 12), "square": (9, 9)}


class Pair(torch.nn.Module):
    """A linear layer in a model that has what `core.targets` asks for."""

    def __init__(self, shape, conv1d=False):
        super().__init__()
        torch.manual_seed(0)
        out, inner = shape
        self.layer = core.Conv1D(out, inner) if conv1d else torch.nn.Linear(inner, out)
        self.norm = torch.nn.LayerNorm(out)

    def forward(self, x):
        return self.norm(self.layer(x))


class Trial:
    """Steps with made-up gradients, without a loss."""

    def __init__(self, method, shape=(12, 7), conv1d=False, decay=0.0, rate=0.01):
        self.model = Pair(shape, conv1d)
        self.recipe = SimpleNamespace(learning_rate=rate, weight_decay=decay)
        self.base = SimpleNamespace(heads=())
        self.optimizer = method.create_optimizer(self, dict(self.model.named_parameters()))
        self.generator = torch.Generator().manual_seed(1)

    def adamw_optimizer(self, parameters, **options):
        return torch.optim.AdamW(
            parameters, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay, **options
        )

    @property
    def weight(self):
        return self.model.layer.weight

    @property
    def projection(self):
        return self.optimizer.state[self.weight]["projection"]

    def step(self) -> torch.Tensor:
        """Returns the weight's gradient."""
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=self.generator)
        self.optimizer.step()
        return self.weight.grad


def own_signs(rows):
    """Each row with its largest entry positive."""
    return rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()


@torch.no_grad()
def published_steps(weight, gradients, signs=own_signs, rank=3, gap=2, scale=0.25, rate=0.01, decay=0.1):
    """The paper's optimizer by its two cases, in float64: project, Adam in the subspace, project back, and keep the
    moments when the projection is made anew. `signs` gives the basis, as rows, the signs that an SVD leaves open."""
    weight, mean, square = weight.double(), 0.0, 0.0
    right = weight.shape[0] >= weight.shape[1]
    for done, gradient in enumerate(g.double() for g in gradients):
        if done % gap == 0:
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            p = signs(vh[:rank]) if right else signs(u[:, :rank].T).T
        narrow = gradient @ p.T if right else p.T @ gradient
        mean, square = 0.9 * mean + 0.1 * narrow, 0.999 * square + 0.001 * narrow**2
        step = rate * (1 - 0.999 ** (done + 1)) ** 0.5 / (1 - 0.9 ** (done + 1))
        normed = mean / (square**0.5 + 1e-6)
        weight = weight - step * scale * (normed @ p if right else p @ normed)
        weight = weight - rate * decay * weight
    return weight.float()


def made_steps(shape, conv1d=False, steps=7):
    """(weight at the start, its gradients, weight in the end), as `[out, in]`, over three new projections."""
    trial = Trial(Method(rank=3, update_gap=2, scale=0.25), shape, conv1d, decay=0.1)
    start = core.weight_of(trial.model.layer).detach().clone()
    gradients = [trial.step().clone() for _ in range(steps)]
    end = core.weight_of(trial.model.layer).detach()
    return start, [g.T if conv1d else g for g in gradients], end


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("conv1d", [False, True])
def test_it_is_the_published_optimizer_over_new_projections_whichever_way_the_weight_is_stored(shape, conv1d):
    start, gradients, end = made_steps(shape, conv1d)
    torch.testing.assert_close(end, published_steps(start, gradients), rtol=1e-5, atol=1e-6)


def test_the_published_optimizer_depends_on_the_signs_of_the_svd_once_the_projection_is_new():
    start, gradients, _ = made_steps(SHAPES["tall"])
    flips = lambda: torch.randint(2, (3, 1)).double() * 2 - 1  # noqa: E731
    torch.manual_seed(0)
    for steps, differs in [(2, False), (7, True)]:
        own, other = (
            published_steps(start, gradients[:steps], signs) for signs in (own_signs, lambda p: own_signs(p) * flips())
        )
        assert ((own - other).abs().max() > 1e-3) == differs


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_signs_that_an_svd_routine_gives_change_nothing(shape, monkeypatch):
    _, _, end = made_steps(shape)
    solve, generator = torch.linalg.svd, torch.Generator().manual_seed(0)

    def solve_with_other_signs(matrix, **options):
        left, values, right = solve(matrix, **options)
        signs = torch.randint(2, values.shape, generator=generator) * 2.0 - 1
        return left * signs, values, right * signs[:, None]

    monkeypatch.setattr(torch.linalg, "svd", solve_with_other_signs)
    assert torch.equal(made_steps(shape)[2], end)


def test_a_gradient_that_turns_round_keeps_its_projection_and_so_the_meaning_of_the_moments():
    gradient = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(projection_basis(-gradient, 3), projection_basis(gradient, 3))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_moments_lie_on_the_larger_side_and_the_state_has_the_size_of_the_formula(shape):
    trial = Trial(Method(rank=3), shape)
    trial.step()
    state = trial.optimizer.state[trial.weight]
    assert state["mean"].shape == state["square"].shape == (max(shape), 3)
    assert sum(t.numel() for t in state.values() if t.dim()) == 2 * 3 * max(shape) + 3 * min(shape)


def test_a_projected_gradient_brought_back_is_its_best_low_rank_approximation():
    gradient = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    p = projection_basis(gradient, 3)
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close(gradient @ p.T @ p, u[:, :3] * s[:3] @ vh[:3])
    full = projection_basis(gradient, 7)
    torch.testing.assert_close(gradient @ full.T @ full, gradient)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_change_within_a_gap_has_the_rank_and_the_space_of_the_projection(shape):
    trial = Trial(Method(rank=2, update_gap=3), shape)
    start = trial.weight.detach().clone()
    for gaps in (1, 2):
        for _ in range(3):
            trial.step()
        change = trial.weight.detach() - start
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2 * gaps
        if gaps == 1:
            tall = change if shape[0] >= shape[1] else change.T
            torch.testing.assert_close(tall @ trial.projection.T @ trial.projection, tall)


@pytest.mark.parametrize("gap", [1, 3, 5])
def test_the_projection_is_orthonormal_and_changes_at_every_gap_alone(gap):
    trial, seen = Trial(Method(rank=3, update_gap=gap)), []
    for _ in range(7):
        trial.step()
        torch.testing.assert_close(trial.projection @ trial.projection.T, torch.eye(3))
        if not seen or not torch.equal(seen[-1], trial.projection):
            seen.append(trial.projection.clone())
    assert len(seen) == ceil(7 / gap)


def test_the_moments_survive_a_new_projection():
    trial = Trial(Method(rank=3, update_gap=2))
    for _ in range(2):
        trial.step()
    mean = trial.optimizer.state[trial.weight]["mean"].clone()
    gradient = trial.step()
    torch.testing.assert_close(
        trial.optimizer.state[trial.weight]["mean"], 0.9 * mean + 0.1 * gradient @ trial.projection.T
    )


def test_all_other_parameters_follow_plain_adamw_bit_for_bit():
    trial = Trial(Method(rank=2), decay=0.1)
    others = {name: p for name, p in trial.model.named_parameters() if name != "layer.weight"}
    twins = {name: torch.nn.Parameter(p.detach().clone()) for name, p in others.items()}
    optimizer = torch.optim.AdamW(twins.values(), lr=0.01, weight_decay=0.1, eps=1e-6)
    for _ in range(4):
        trial.step()
        for name, twin in twins.items():
            twin.grad = others[name].grad
        optimizer.step()
    assert all(torch.equal(twin, others[name]) for name, twin in twins.items())


def test_the_scale_multiplies_the_step_and_not_the_gradient():
    once, twice = (Trial(Method(rank=2, scale=scale)) for scale in (1.0, 2.0))
    start = once.weight.detach().clone()
    once.step(), twice.step()
    torch.testing.assert_close(twice.weight - start, 2 * (once.weight - start))


def test_named_layers_alone_are_projected_and_never_embeddings_norms_or_heads(tmp_path):
    toy = FAMILIES["bert"]()
    session = train(toy, Method(rank=2, target_modules=("query",)), tmp_path, steps=1)
    state = session.optimizing.state
    projected = {name for name, p in toy.model.named_parameters() if "projection" in state[p]}
    assert projected == {f"bert.encoder.layer.{i}.attention.self.query.weight" for i in range(2)}
    session = train(toy := FAMILIES["bert"](), Method(rank=2), tmp_path / "all", steps=1)
    assert sum("projection" in session.optimizing.state[p] for p in toy.model.parameters()) == toy.modules


def test_the_rate_of_the_step_reaches_projected_and_other_weights():
    session = begin(FAMILIES["llama"](), Method(rank=2))
    parameters = core.trainable_parameters(session.model)
    groups = session.create_optimizer(parameters, None).param_groups
    assert all("lr" in group for group in groups)
    assert sum(len(group["params"]) for group in groups) == len(parameters)
