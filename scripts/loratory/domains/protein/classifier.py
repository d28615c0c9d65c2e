"""Which label a sequence has, by a classifier that is no language model and learns from train records alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from loratory.domains.protein.labels import record_label

LONGEST_KMER = 3
INVERSE_STRENGTH = 10.0  # of the regularisation, of shares scaled to unit length


class LabelClassifier:
    """Multinomial logistic regression on how often each k-mer of up to three residues occurs.

    Attributes:
        labels: those it tells apart, sorted; where there is but one, that is always the answer.
    """

    def __init__(self, known: Sequence[tuple[str, str]]) -> None:
        """Args:
        known: (sequence, label) pairs.
        """
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer

        self.labels = sorted({label for _, label in known})
        self.model: Any = None
        if len(self.labels) > 1:
            kmers = CountVectorizer(analyzer="char", ngram_range=(1, LONGEST_KMER), lowercase=False)
            regression = LogisticRegression(C=INVERSE_STRENGTH, max_iter=1000)
            self.model = make_pipeline(kmers, Normalizer(), regression).fit(*zip(*known))

    def classify(self, sequences: Sequence[str]) -> list[str]:
        if self.model is None or not sequences:
            return self.labels[:1] * len(sequences)
        return list(map(str, self.model.predict(sequences)))


@lru_cache(maxsize=4)
def fitted_classifier(known: tuple[tuple[str, str], ...]) -> LabelClassifier | None:
    """The classifier of these (sequence, label) pairs, fitted once; None without any."""
    return LabelClassifier(known) if known else None


def train_classifier(train: Sequence[Mapping], name: str, fewest: int) -> LabelClassifier | None:
    """Learns the labels of a property that at least `fewest` train records have; None if no label has."""
    pairs = [(record["sequence"], record_label(record, name)) for record in train]
    known = [(sequence, label) for sequence, label in pairs if label is not None]
    sizes = Counter(label for _, label in known)
    return fitted_classifier(tuple(pair for pair in known if sizes[pair[1]] >= fewest))


def permuted_agreement(predicted: Mapping[int, str], asked: Mapping[int, str]) -> dict[int, float]:
    """{row: share of all rows that ask for its predicted label}: how often it is right if what is asked is dealt out
    anew, the mean over all ways to do so."""
    sizes = Counter(asked[row] for row in predicted)
    return {row: sizes[label] / len(predicted) for row, label in predicted.items()}
