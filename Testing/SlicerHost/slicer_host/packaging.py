"""``slicer.packaging`` of Slicer 5.11 and newer, which here records what was asked for and installs nothing."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Request:
    """What a module asked pip for."""

    requirements: tuple[str, ...]
    options: dict[str, Any]


@dataclass
class Recorder:
    """What was asked for, what the user answers, and what is missing."""

    requests: list[Request] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    user_agrees: bool = True
    pip_fails: bool = False


recorder = Recorder()


def _name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    if match is None:
        raise ValueError(f"Not a requirement: {requirement!r}")
    return match.group().lower()


def load_requirements(path: str | Path) -> list[str]:
    """Return the requirements of a file, without comments."""
    lines = (line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pip_check(requirements: Any) -> bool:
    """Return whether all requirements are there, those apart that a test has declared missing."""
    wanted = [requirements] if isinstance(requirements, str) else [str(item) for item in requirements]
    for requirement in wanted:
        name = _name_of(requirement)
        if name in recorder.missing:
            return False
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


def pip_install(requirements: Any, **options: Any) -> None:
    """Record what was asked for; then it counts as installed."""
    wanted = tuple([requirements] if isinstance(requirements, str) else [str(item) for item in requirements])
    recorder.requests.append(Request(wanted, dict(options)))
    if recorder.pip_fails:
        raise RuntimeError("pip failed (the host was told so)")
    recorder.missing -= {_name_of(requirement) for requirement in wanted}


def pip_ensure(requirements: Any, **options: Any) -> bool:
    """Record what is missing, as if the user had been asked and pip had run."""
    wanted = [requirements] if isinstance(requirements, str) else [str(item) for item in requirements]
    lacking = [requirement for requirement in wanted if not pip_check(requirement)]
    if not lacking:
        return True
    if options.get("prompt", True) and not recorder.user_agrees:
        raise RuntimeError("The installation was declined by the user.")
    pip_install(lacking, **options)
    return True


def make_module() -> ModuleType:
    """Return ``slicer.packaging``."""
    module = ModuleType("slicer.packaging", __doc__)
    for function in (load_requirements, pip_check, pip_install, pip_ensure):
        setattr(module, function.__name__, function)
    return module
