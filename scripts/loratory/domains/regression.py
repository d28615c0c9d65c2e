"""The regressions behind controls that need no language model."""

from collections.abc import Sequence

import numpy as np


def logistic_regression(x_train: np.ndarray, label: Sequence[int], x_test: np.ndarray) -> np.ndarray:
    """(m,) P(label 1) of each test row, after standardising the features on the training rows.

    Args:
        x_train, x_test: (n, features) and (m, features).
        label: (n,) 0 or 1; where all are alike, so are the answers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(label)) == 1:
        return np.full(len(x_test), float(label[0]))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return model.fit(x_train, label).predict_proba(x_test)[:, 1]


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
