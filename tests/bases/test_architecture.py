"""Keys, types and sizes of a base that is to be trained are checked before anything runs."""

import pytest
from studies import shipped

from loratory.bases.architecture import check_architecture
from loratory.errors import InputError

TRAINED = [(name, base) for file in ("bases", "folding", "test") for name, base in shipped(file)["bases"].items()]
FOLD = shipped("folding")["bases"]["mini_fold"]["pretrain"]["architecture"]


@pytest.mark.parametrize(("name", "base"), [(n, b) for n, b in TRAINED if "pretrain" in b])
def test_what_is_shipped_can_be_made(name, base):
    check_architecture(name, base["family"], base["pretrain"]["architecture"])


WRONG = {  # what is told: family, architecture
    "bases.x: unknown key (hiden_size); expected one of ": ("causal", {"hiden_size": 8}),
    "bases.x: unknown key (encoder_layerss); expected one of ": ("whisper", {"encoder_layerss": 2}),
    "bases.x: no such model can be made: TypeError: Field 'hidden_size' expected int, got str": (
        "causal",
        {"hidden_size": "8"},
    ),
    "bases.x: no such model can be made: TypeError: Field 'hidden_size' expected int, got bool": (
        "encoder",
        {"hidden_size": True},
    ),
    "bases.x.num_hidden_layers: wrong value (-1); expected at least 0": ("causal", {"num_hidden_layers": -1}),
    "bases.x: no such model can be made: ValueError: The hidden size (10) is not a multiple": (
        "causal",
        {"hidden_size": 10, "num_attention_heads": 3},
    ),
    "bases.x: no such model can be made: ": ("causal", {"num_attention_heads": 0}),
    "bases.x.esmfold_config: unknown key (trunkk)": ("folding", FOLD | {"esmfold_config": {"trunkk": {}}}),
    "bases.x.esmfold_config: wrong value (3); expected keys with values": ("folding", FOLD | {"esmfold_config": 3}),
    "bases.x: no such model can be made: TypeError: Field 'num_blocks'": (
        "folding",
        FOLD | {"esmfold_config": {"trunk": {"num_blocks": "x"}}},
    ),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_the_family_cannot_be_is_told_in_one_line(told):
    family, architecture = WRONG[told]
    with pytest.raises(InputError) as caught:
        check_architecture("bases.x", family, architecture)
    assert str(caught.value).startswith(told) and str(caught.value).isprintable()


def test_a_family_with_a_training_of_its_own_is_left_to_it():
    check_architecture("bases.x", "seq2seq", {"anything": 1})
