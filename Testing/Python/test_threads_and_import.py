"""What importing the package does to the process: no torch yet, and threads that do not spin for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def after_import(**given: str) -> dict[str, object]:
    """Import the package in a fresh process, and tell what it made of the settings of OpenMP."""
    code = (
        "import json, os, sys, SAM2AssistLib;"
        f"print(json.dumps({{'torch': 'torch' in sys.modules, **{{n: os.environ.get(n) for n in {SETTINGS}}}}}))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def test_threads_are_told_not_to_spin_for_long_before_torch_is_there_to_read_it() -> None:
    found = after_import()
    assert not found["torch"]
    assert 0 < int(str(found["GOMP_SPINCOUNT"])) < 300_000


@pytest.mark.parametrize(("given", "spins"), [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_what_the_user_has_set_for_threads_is_left_as_it_is(given: dict[str, str], spins: str | None) -> None:
    found = after_import(**given)
    assert found["GOMP_SPINCOUNT"] == spins
    assert found["OMP_WAIT_POLICY"] == given.get("OMP_WAIT_POLICY")
