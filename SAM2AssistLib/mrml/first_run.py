"""What has to be installed before the engine can work, and how Slicer installs it.

Nothing here runs by itself: the module shows the list, and the user presses a button. pip runs in Slicer's main thread
and never replaces what Slicer brings.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.catalogue import CATALOGUE
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)

TORCH = "torch>=2.5.1"
SAM2 = "sam2==1.1.0"

# Megabytes on the disk, as installed on Linux with Python 3.11 in November 2026 (du -sm); torch is the build without
# CUDA, one with CUDA takes several gigabytes.
_SIZES_MB = {"torch": 760, "scikit-image": 32, "hydra-core": 3, "rich": 3, "typer": 2, "safetensors": 2}
_OTHER_MB = 1

# Slicer's own: pip is told to keep them at the version that is there.
KEPT = ("numpy", "scipy", "SimpleITK", "pydicom", "requests", "vtk", "pillow", "torch", "torchvision")


@dataclass(frozen=True)
class MissingPackage:
    """A package that has to be installed.

    Attributes
    ----------
    requirement : as pip takes it.
    size_mb : on the disk, roughly.
    by : who installs it.
    """

    requirement: str
    size_mb: int
    by: str

    def __str__(self) -> str:
        listed = _("{package} (about {size} MB, by {by})")
        return listed.format(package=self.requirement, size=self.size_mb, by=self.by)


def missing_packages(requirements_file: Path) -> list[MissingPackage]:
    """List what is missing or too old, in the order in which it has to be installed; empty if all is there."""
    wanted = [(TORCH, _("the PyTorch extension")), *((line, "pip") for line in requirement_lines(requirements_file))]
    wanted.append((SAM2, _("pip, built for this Slicer")))
    return [
        MissingPackage(requirement, _SIZES_MB.get(_name(requirement), _OTHER_MB), by)
        for requirement, by in wanted
        if not _is_there(requirement)
    ]


def requirement_lines(requirements_file: Path) -> list[str]:
    """Read the requirements of a file, without comments."""
    lines = (line.partition("#")[0].strip() for line in requirements_file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def install(requirements_file: Path, wheel_folder: str = "") -> None:
    """Install what is missing, asking first; call it in the main thread.

    Parameters
    ----------
    requirements_file : the module's requirements.txt.
    wheel_folder : folder of wheels to install from without internet, and of weights, if there are any; '' for the
        package index.

    Raises
    ------
    InputError
        If the PyTorch extension is needed and not installed, or there is no such folder.
    RuntimeError
        If the user declines or pip fails, as Slicer's installers raise it.
    """
    import slicer.packaging

    if wheel_folder and not Path(wheel_folder).is_dir():
        said = _("There is no folder {folder}; choose the one that holds the wheels.")
        raise InputError(said.format(folder=wheel_folder))
    needed = {_name(item.requirement): item.requirement for item in missing_packages(requirements_file)}
    with _constraints() as constraints:
        source = f"--no-index --find-links {_quoted(wheel_folder)}" if wheel_folder else ""
        if "torch" in needed:
            _install_torch(needed.pop("torch"), source, constraints)
        sam2 = needed.pop("sam2", None)
        if needed and source:
            slicer.packaging.pip_install(f"{' '.join(needed.values())} {source}", constraints=constraints)
        elif needed:
            slicer.packaging.pip_ensure(list(needed.values()), constraints=constraints, requester="SAM2Assist")
        if sam2 is not None:
            os.environ["SAM2_BUILD_CUDA"] = "0"  # its CUDA kernel only cleans masks, and needs a compiler
            slicer.packaging.pip_install(f"{sam2} --no-deps --no-build-isolation {source}".strip())
    if wheel_folder:
        place_weights(Path(wheel_folder))


def place_weights(folder: Path) -> list[str]:
    """Copy the weights of a folder to where models are looked for, verified; returns the names of those models.

    Raises
    ------
    ModelError
        If a file is not what its publisher has published.
    """
    found = [s for s in CATALOGUE if not s.embedded and not store.is_present(s) and (folder / s.file_name).is_file()]
    for spec in found:
        store.place(spec, folder / spec.file_name)
    return [spec.name for spec in found]


def _install_torch(requirement: str, source: str, constraints: Path) -> None:
    import slicer.packaging

    if source:
        slicer.packaging.pip_install(f"{requirement} {source}", constraints=constraints)
        return
    try:
        import PyTorchUtils  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            _(
                "PyTorch is installed by the PyTorch extension, which is not there; get it in the Extensions Manager,"
                " or choose a folder of wheels."
            )
        ) from error
    minimum = requirement.removeprefix("torch")
    PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=minimum)


@contextmanager
def _constraints() -> Iterator[Path]:
    """Give a constraints file that keeps what Slicer brings as it is."""
    lines = []
    for name in KEPT:
        version = _version(name)
        if version is not None:
            lines.append(f"{name}=={version.partition('+')[0]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield path


def _is_there(requirement: str) -> bool:
    found = _version(_name(requirement))
    least = re.search(r"[>=]=([\d.]+)", requirement)
    if found is None or least is None:
        return found is not None
    return _numbers(found) >= _numbers(least.group(1))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)
