"""The ranks that layers were left with."""

import torch

from loratory.adapters import deltas
from loratory.adapters.deltas import Adapter, LowRank
from loratory.reporting.method_figures import block_and_matrix, draw_ranks, mean_ranks

Q, FC = "model.encoder.layers.1.self_attn.q_proj", "model.decoder.layers.10.fc1"


def stored(folder, ranks: dict[str, int], dead: int = 0):
    """An adapter with layers of these ranks, the first `dead` components of each of them zero."""
    changes = {name: LowRank(torch.ones(rank, 4), torch.ones(6, rank), 1.0) for name, rank in ranks.items()}
    for change in changes.values():
        change.A[:dead] = 0
    deltas.save_adapter(folder, Adapter(deltas=changes), causal=False)
    return folder


def test_a_rank_is_how_many_components_are_left_mean_over_seeds(tmp_path):
    folders = [stored(tmp_path / "a", {Q: 3, FC: 1}), stored(tmp_path / "b", {Q: 2}, dead=1)]
    assert mean_ranks(folders) == {Q: 2.0, FC: 0.5}
    assert mean_ranks([stored(tmp_path / "c", {Q: 1}, dead=1)]) == {Q: 0.0}
    (tmp_path / "none").mkdir()
    assert mean_ranks([tmp_path / "none"]) == {}


def test_layers_are_rows_of_blocks_and_columns_of_matrices(tmp_path):
    assert block_and_matrix(Q) == ("encoder 1", "self_attn.q_proj")
    assert block_and_matrix("model.layers.0.mlp.up_proj") == ("0", "mlp.up_proj")
    assert block_and_matrix("model.encoder.conv1") == ("model.encoder", "conv1")
    adapters = {"s2@speech": [stored(tmp_path / "a", {Q: 3, FC: 1})], "empty@speech": [tmp_path / "missing"]}
    draw_ranks(adapters, tmp_path / "ranks.svg")
    text = (tmp_path / "ranks.svg").read_text()
    places = [text.index(f">{word}<") for word in ("encoder 1", "decoder 10")]
    assert places == sorted(places) and "s2@speech" in text and "self_attn.q_proj" in text
    draw_ranks(adapters, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
