import pytest

from loratory.training import fit


@pytest.fixture
def kill_in_step(monkeypatch):
    """A function that runs another one, whose training is killed before its n-th update."""

    def run_killed(n, training):
        update, calls = fit.update, []

        def killed(*given):
            calls.append(1)
            if len(calls) == n:
                raise KeyboardInterrupt
            return update(*given)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(fit, "update", killed)
            training()

    return run_killed
