"""Samples among themselves and beside the records that were learnt from: are they new, diverse, of natural lengths?"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from loratory.data.mmseqs import Relation, cluster_sequences, search_sequences
from loratory.domains.contract import Columns

NEAREST = Relation(identity=0.3, coverage=0.8, covered="shorter")  # below, unrelated sequences align too
ALIKE = Relation(identity=0.5, coverage=0.8)


def compare_samples(samples: Mapping[str, str], train: Sequence[str]) -> dict[str, dict[str, float]]:
    """What `compare_with_train` and `share_clusters` say of each sample.

    Args:
        samples: {name: residues}. train: residues of each record.
    """
    clusters, beside = share_clusters(samples), compare_with_train(samples, train)
    return {name: {"cluster": clusters[name], **beside[name]} for name in samples}


def share_clusters(samples: Mapping[str, str]) -> dict[str, float]:
    """{sample: 1 over how many samples are in its cluster}, so that the mean is how many clusters a sample makes.

    A cluster's members are half identical to its representative over 80 % of both.
    """
    home = cluster_sequences(samples, ALIKE)
    sizes = Counter(home.values())
    return {name: 1 / sizes[home[name]] for name in samples}


def compare_with_train(samples: Mapping[str, str], train: Sequence[str]) -> dict[str, dict[str, float]]:
    """{sample: its `novelty`, and the shares of train that are `shorter` and `no_longer`}; nothing without train.

    Novelty is 1 less the largest identity to a record over 80 % of the shorter of the two, so that a fragment of one
    is not new; it is 1 where no record is 30 % identical, as chance makes that of unrelated ones.
    """
    if not train:
        return {name: {} for name in samples}
    identity = dict.fromkeys(samples, 0.0)
    for name, _, share in search_sequences(samples, {str(i): each for i, each in enumerate(train)}, NEAREST):
        identity[name] = max(identity[name], share)
    lengths = np.sort([len(each) for each in train])
    return {
        name: {
            "novelty": 1 - identity[name],
            "shorter": float(np.searchsorted(lengths, len(sequence), "left") / len(lengths)),
            "no_longer": float(np.searchsorted(lengths, len(sequence), "right") / len(lengths)),
        }
        for name, sequence in samples.items()
    }


def length_distance(columns: Columns) -> float:
    """The largest distance between the distributions of lengths of samples and of train (Kolmogorov–Smirnov), 0–1.

    It is reached at a sample's length: with the sample counted, or right before it.
    """
    before, upto = columns["shorter"], columns["no_longer"]
    if not len(upto):
        return float("nan")
    with_it = np.searchsorted(np.sort(upto), upto, "right") / len(upto)
    without = np.searchsorted(np.sort(before), before, "left") / len(before)
    return float(max(np.abs(with_it - upto).max(), np.abs(without - before).max()))
