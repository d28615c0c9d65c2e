"""AdaLoRA (arXiv:2303.10512), against PEFT."""

from itertools import pairwise

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row
from peft import AdaLoraConfig, get_peft_model

from loratory.adapters import core
from loratory.adapters.methods.adalora import (
    Method,
    allocation_window,
    keep_best_triplets,
    orthogonality_error,
    rank_budget,
    triplet_scores,
)

OPTIONS = {"init_rank": 4, "target_rank": 2}
ROW = Row(OPTIONS, lambda shapes, model: sum(4 * (out + inner + 1) for out, inner in shapes))


class Watched(Method):
    """Notes after each step which triplets are in use."""

    def after_step(self, session, step):
        super().after_step(session, step)
        used = {name: layer.adapter["E"].detach() != 0 for name, layer in session.layers.items()}
        session.used = [*getattr(session, "used", []), used]


def ranks(used: dict) -> int:
    return sum(int(triplets.sum()) for triplets in used.values())


def test_steps_are_those_of_peft():
    """Scores, cubic budget, masks of all three phases and the orthogonality penalty."""
    ours, theirs, steps = FAMILIES["llama"](), FAMILIES["llama"](), 10
    method = Method(**OPTIONS, alpha=8.0, warm=0.2, final=0.3, interval=2, orthogonality=0.3)
    session = begin(ours, method, steps=steps, decay=0.0)
    optimizer = session.create_optimizer(core.trainable_parameters(ours.model), None)
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, tinit=2, tfinal=3, deltaT=2, orth_reg_weight=0.3, total_step=steps,
        target_modules=list(session.layers), task_type="CAUSAL_LM",
    )  # fmt: skip
    peft = get_peft_model(theirs.model, config)
    for name, layer in session.layers.items():
        for key in ("A", "E", "B"):
            copy = peft.base_model.model.get_submodule(name).get_submodule(f"lora_{key}")["default"].data
            copy.copy_(layer.adapter[key].detach().view_as(copy))
    other = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=0.01, weight_decay=0)
    masked = 0
    for step in range(steps):
        ids = session.batch(step)["ids"]
        loss = ours.model(input_ids=ids, labels=ids).loss + method.step_penalty(session)
        loss.backward()
        optimizer.step()
        session.after_step(step)
        optimizer.zero_grad()
        expected = peft(input_ids=ids, labels=ids).loss
        expected.backward()
        other.step()
        peft.base_model.update_and_allocate(step)
        other.zero_grad()
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
        with torch.no_grad():
            difference = ours.model(input_ids=ids).logits - peft(input_ids=ids).logits
        assert difference.abs().max() < 1e-5
        masked = max(masked, sum(int((layer.adapter["E"] == 0).sum()) for layer in session.layers.values()))
    assert masked == 14 * 2


def test_the_budget_falls_along_a_cubic_from_the_start_to_the_target():
    falling = [rank_budget(step, 120, 80, 10, 70) for step in range(100)]
    assert falling[:11] == [120] * 11 and falling[70:] == [80] * 30
    assert all(isinstance(b, int) and a >= b for a, b in pairwise(falling))
    assert falling[40] == 80 + 40 // 8


@pytest.mark.parametrize(("steps", "expected"), [(100, (10, 70)), (6, (1, 4)), (1, (0, 0))])
def test_the_phases_are_shares_of_the_run_and_the_last_is_never_empty(steps, expected):
    assert allocation_window(steps, 0.1, 0.3) == expected


def test_never_more_triplets_than_the_budget_and_the_last_phase_keeps_its_own(tmp_path):
    toy, method = FAMILIES["llama"](), Watched(**OPTIONS, warm=0.2, final=0.4)
    session = train(toy, method, tmp_path, steps=20)
    allowed = [rank_budget(step, 14 * 4, 14 * 2, 4, 12) for step in range(20)]
    assert all(ranks(used) <= allowed[step] for step, used in enumerate(session.used))
    assert [ranks(used) for used in session.used[5:]] == allowed[5:]
    for used in session.used[13:]:
        assert all(torch.equal(used[name], session.used[12][name]) for name in used)
    assert len({int(triplets.sum()) for triplets in session.used[-1].values()}) > 1, "all layers got the same rank"


def test_stored_ranks_are_those_in_use_and_no_rank_is_below_one(tmp_path):
    toy = FAMILIES["llama"]()
    session = train(toy, Watched(**OPTIONS), tmp_path, steps=12)
    for name, delta in core.export(toy.model, (), {}).deltas.items():
        layer, used = session.layers[name], session.used[-1][name]
        assert delta.rank == max(1, int(used.sum()))
        a, e, b = (layer.adapter[key].detach() for key in ("A", "E", "B"))
        torch.testing.assert_close(delta.to_dense(), 16 / (4 + 1e-5) * b @ torch.diag(e) @ a)


def test_a_fresh_adapter_is_stored_as_no_change():
    toy = FAMILIES["llama"]()
    begin(toy, Method(**OPTIONS))
    assert all(
        delta.rank == 1 and not delta.to_dense().any() for delta in core.export(toy.model, (), {}).deltas.values()
    )


def random_layer(method, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors = method.initial_tensors(torch.zeros(5, 6), generator)
    for key in ("A", "E", "B"):
        tensors[key].normal_(generator=generator).requires_grad_(True)
        tensors[key].grad = torch.randn(tensors[key].shape, generator=generator)
    return tensors


@torch.no_grad()
def test_scores_follow_the_formula_and_their_order_does_not_depend_on_the_loss_scale():
    method = Method(**OPTIONS)
    one, ten = random_layer(method, 1), random_layer(method, 1)
    for key in ("A", "E", "B"):
        ten[key].grad *= 10
    for _ in range(2):
        method.update_sensitivity(one)
        method.update_sensitivity(ten)
    importance = {key: (one[key] * one[key].grad).abs() for key in ("A", "E", "B")}
    expected = 0
    for key, mean in (("E", lambda s: s), ("A", lambda s: s.mean(1)), ("B", lambda s: s.mean(0))):
        smooth, doubt = 0.0, 0.0
        for _ in range(2):
            smooth = 0.85 * smooth + 0.15 * importance[key]
            doubt = 0.85 * doubt + 0.15 * (importance[key] - smooth).abs()
        expected = expected + mean(smooth * doubt)
    torch.testing.assert_close(triplet_scores(one), expected)
    torch.testing.assert_close(ten["sensitivity_A"], 10 * one["sensitivity_A"])
    torch.testing.assert_close(triplet_scores(ten), 100 * triplet_scores(one))


@torch.no_grad()
def test_scores_without_gradients_stay_zero():
    method = Method(**OPTIONS)
    zero, missing = random_layer(method, 1), random_layer(method, 2)
    for key in ("A", "E", "B"):
        zero[key].grad.zero_()
        missing[key].grad = None
    for tensors in (zero, missing):
        method.update_sensitivity(tensors)
        assert not triplet_scores(tensors).any()


@torch.no_grad()
def test_the_best_triplets_of_all_layers_are_kept():
    method = Method(**OPTIONS)
    layers = [random_layer(method, seed) for seed in range(3)]
    for tensors in layers:
        method.update_sensitivity(tensors)
    for triplets in (12, 5, 1):
        keep_best_triplets(layers, triplets)
        best = torch.cat([triplet_scores(tensors) for tensors in layers]).topk(triplets).indices
        assert torch.cat([tensors["kept"] for tensors in layers]).nonzero().flatten().tolist() == sorted(best.tolist())


def test_the_penalty_is_zero_for_orthonormal_factors_alone():
    orthonormal = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(0))).Q.T
    assert orthogonality_error(orthonormal) < 1e-5
    assert orthogonality_error(2 * orthonormal) == pytest.approx(3 * 3**0.5, rel=1e-5)
    toy = FAMILIES["llama"]()
    assert Method(**OPTIONS, orthogonality=0.0).step_penalty(begin(toy, Method(**OPTIONS))) is None


def test_values_have_no_weight_decay():
    toy = FAMILIES["bert"]()
    session = begin(toy, Method(**OPTIONS))
    parameters = core.trainable_parameters(toy.model)
    groups = session.create_optimizer(parameters, None).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in groups] == [len(parameters) - toy.modules, toy.modules]
    assert all(p.dim() == 1 for p in groups[1]["params"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"init_rank": 8}, "less than init_rank"), ({"warm": 0.7}, r"warm \+ final is 1")],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Method(**options)
