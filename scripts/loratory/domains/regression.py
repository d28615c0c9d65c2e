"""The regressions behind controls that need no language model."""

from collections.abc import Callable, Sequence

import numpy as np


def logistic_regression(x_train: np.ndarray, label: Sequence[int], x_test: np.ndarray) -> np.ndarray:
    """(m,) P(label 1) of each test row; arguments as of `fit_logistic_regression`."""
    return fit_logistic_regression(x_train, label)(x_test)


def fit_logistic_regression(x_train: np.ndarray, label: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    """(m, features) -> (m,) P(label 1), after standardising the features on the training rows.

    Args:
        x_train: (n, features).
        label: (n,) 0 or 1; where all are alike, so are the answers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(label)) == 1:
        return lambda rows: np.full(len(rows), float(label[0]))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x_train, label)
    return lambda rows: model.predict_proba(rows)[:, 1]


def linear_regression(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """(m, q) what a linear regression says of each test row, after standardising the features on the training rows.

    Args:
        x_train, x_test: (n, features) and (m, features). y_train: (n, q). Of the strengths of a quadratic penalty, for
            each of the q the one by which rows that are left out are predicted best.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-6, 3, 10), alpha_per_target=True))
    return model.fit(x_train, y_train).predict(x_test).reshape(len(x_test), -1)
