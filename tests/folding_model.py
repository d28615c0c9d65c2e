"""A folding model small enough to be built in a test: 68 thousand random weights, so only mechanics can be tested."""

import json

import torch
from transformers import EsmConfig, EsmForProteinFolding
from transformers.models.esm.configuration_esm import get_default_vocab_list

STRUCTURE_MODULE = {
    "sequence_dim": 16,
    "pairwise_dim": 16,
    "ipa_dim": 4,
    "resnet_dim": 8,
    "num_heads_ipa": 2,
    "num_qk_points": 2,
    "num_v_points": 2,
    "num_blocks": 2,
    "num_transition_layers": 1,
    "num_resnet_blocks": 1,
}
TRUNK = {
    "num_blocks": 1,
    "sequence_state_dim": 32,
    "pairwise_state_dim": 16,
    "sequence_head_width": 8,
    "pairwise_head_width": 8,
    "position_bins": 8,
    "max_recycles": 1,
    "dropout": 0.1,
    "structure_module": STRUCTURE_MODULE,
}


def save_folding_model(folder, seed: int = 0, **card):
    """Writes the model and, with `card`, its `base.json`."""
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        position_embedding_type="rotary",
        token_dropout=True,
        is_folding_model=True,
        vocab_list=get_default_vocab_list(),
        esmfold_config={"fp16_esm": False, "lddt_head_hid_dim": 16, "trunk": TRUNK},
    )
    torch.manual_seed(seed)
    model = EsmForProteinFolding(config).float()
    with torch.no_grad():  # the library's own start is all but constant: every pLDDT would be 50
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    if card:
        (folder / "base.json").write_text(json.dumps(card))
    return folder
