"""What the training half promises to those who import it."""

from __future__ import annotations

import subprocess
import sys

import leuda_train


def test_the_public_names_are_these_and_each_can_be_had():
    assert leuda_train.__all__ == [
        "evaluate_paths",
        "export_run",
        "load_config",
        "read_cohort",
        "train",
    ]
    for name in leuda_train.__all__:
        member = getattr(leuda_train, name)
        assert member.__name__ == name
        assert member.__doc__
    assert dir(leuda_train) == leuda_train.__all__


def test_a_name_that_is_not_public_is_no_attribute():
    assert not hasattr(leuda_train, "nonesuch")


def test_importing_the_package_and_scoring_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; from leuda_train import evaluate_paths"
    subprocess.run([sys.executable, "-c", code], check=True)
