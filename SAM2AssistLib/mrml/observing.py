"""Observing VTK objects without keeping the observer alive.

A scene that goes away tells its observers so. If one of them were held by nothing but the scene, Python's garbage
collector could have taken it apart by then; so objects hold weak references to their observers' owners only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

Observation = tuple[Any, int]
"""What is observed, and the observer's tag."""


def observe(observed: Any, event: Any, method: Callable[..., None], data: Any = None) -> Observation:
    """Call a bound method when a VTK object invokes an event.

    Parameters
    ----------
    observed : vtkObject
    event : its number or name.
    method : called with the call data if `data` is given, otherwise with nothing; not kept alive.
    data : type of the event's call data, such as ``vtk.VTK_STRING``.
    """
    target = weakref.WeakMethod(method)

    def call(_observed: Any, _event: str, *given: Any) -> None:
        living = target()
        if living is not None:
            living(*given)

    if data is not None:
        setattr(call, "CallDataType", data)  # noqa: B010 - how VTK is told
    return observed, observed.AddObserver(event, call)


def forget(observations: list[Observation]) -> None:
    """End observations, and empty the list."""
    for observed, tag in observations:
        observed.RemoveObserver(tag)
    observations.clear()
