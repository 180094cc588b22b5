"""The host of Testing/SlicerHost as pytest fixtures; import both, ``one_host`` and ``a_host``, into a test file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from slicer_package import ROOT

HOST_FOLDER = ROOT / "Testing" / "SlicerHost"


def host_or_skip() -> Any:
    """Return the package of the host; skip the test file where it cannot run."""
    if "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    try:
        import PySide6.QtUiTools  # noqa: F401
        import PySide6.QtWidgets  # noqa: F401
    except ImportError as error:
        pytest.skip(
            f"PySide6 cannot be loaded ({error}); on Debian: apt-get install libegl1 libgl1", allow_module_level=True
        )
    if str(HOST_FOLDER) not in sys.path:
        sys.path.insert(0, str(HOST_FOLDER))
    import slicer_host

    if not slicer_host.can_render():
        pytest.skip(
            "VTK can draw nothing here; on Debian: apt-get install libegl1 libgl1-mesa-dri", allow_module_level=True
        )
    return slicer_host


@pytest.fixture(scope="module")
def one_host() -> Iterator[Any]:
    """The host of a test file; tests take ``a_host``."""
    with host_or_skip().open_host() as host:
        yield host


@pytest.fixture
def a_host(one_host: Any) -> Iterator[Any]:
    """A host with an empty scene whose window is shown."""
    one_host.start_anew()
    yield one_host
    one_host.unload_modules()
