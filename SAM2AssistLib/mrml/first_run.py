"""What has to be installed before the engine can work, and how Slicer installs it.

Nothing here runs by itself: the module shows the list, and the user presses a button. pip runs in Slicer's main thread
and never replaces what Slicer brings.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.catalogue import CATALOGUE
from SAM2AssistLib.errors import InputError, InstallError
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


@dataclass(frozen=True)
class Installing:
    """A package whose turn it is.

    Attributes
    ----------
    requirement : as pip takes it.
    number, total : which of how many, from 1.
    """

    requirement: str
    number: int
    total: int


def missing_packages(requirements_file: Path) -> list[MissingPackage]:
    """List what is missing or too old, in the order in which it has to be installed; empty if all is there."""
    wanted = [(TORCH, _("the PyTorch extension")), *((line, "pip") for line in requirement_lines(requirements_file))]
    wanted.append((SAM2, _("pip, built for this Slicer")))
    return [
        MissingPackage(requirement, _SIZES_MB.get(_name(requirement), _OTHER_MB), by)
        for requirement, by in wanted
        if not _is_there(requirement)
    ]


def describe(missing: Sequence[MissingPackage]) -> str:
    """List packages for the user, each on a line of its own, and the room all of them take."""
    total = _("About {size} MB in all.").format(size=sum(item.size_mb for item in missing))
    return "\n".join([_("Needed before the first prompt:"), *map(str, missing), total])


def requirement_lines(requirements_file: Path) -> list[str]:
    """Read the requirements of a file, without comments."""
    lines = (line.partition("#")[0].strip() for line in requirements_file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def installing(requirements_file: Path, wheel_folder: str = "") -> Iterator[Installing]:
    """Install what is missing, one package after another, for a user who has seen the list; call it in the main thread.

    Each package is told before it is installed; whoever asks for no further one has cancelled the rest, and what is
    installed by then stays.

    Parameters
    ----------
    requirements_file : the module's requirements.txt.
    wheel_folder : folder of wheels to install from without internet, and of weights, if there are any; '' for the
        package index.

    Raises
    ------
    InputError
        If the PyTorch extension is needed and not installed, there is no such folder, or Slicer is too old.
    InstallError
        If a package cannot be installed; the sentence names it and says what to do.
    ModelError
        If weights in the folder are not what their publisher has published.
    """
    if wheel_folder and not Path(wheel_folder).is_dir():
        said = _("There is no folder {folder}; choose the one that holds the wheels.")
        raise InputError(said.format(folder=wheel_folder))
    source = f"--no-index --find-links {_quoted(wheel_folder)}" if wheel_folder else ""
    missing = [item.requirement for item in missing_packages(requirements_file)]
    if missing:
        _check_slicer()
    for number, requirement in enumerate(missing, start=1):
        yield Installing(requirement, number, len(missing))
        try:
            _install(requirement, source)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            said = _(
                "{package} could not be installed, number {number} of {total} ({reason}); check the connection to the"
                " internet or choose a folder of wheels, and press the button again to go on from there."
            )
            told = said.format(package=requirement, number=number, total=len(missing), reason=error)
            raise InstallError(told) from error
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


def _check_slicer() -> None:
    try:
        import slicer.packaging  # noqa: F401
    except ModuleNotFoundError as error:
        said = _("This version of Slicer cannot install packages for a module; get Slicer 5.12 or newer.")
        raise InputError(said) from error


def _install(requirement: str, source: str) -> None:
    """Install one package; what is there by then, torch among it, stays at its version."""
    import slicer.packaging

    if requirement == SAM2:
        os.environ["SAM2_BUILD_CUDA"] = "0"  # its CUDA kernel only cleans masks, and needs a compiler
        slicer.packaging.pip_install(f"{requirement} --no-deps --no-build-isolation {source}".strip())
    elif requirement == TORCH and not source:
        _install_torch(requirement)
    else:
        with _constraints() as constraints:
            slicer.packaging.pip_install(f"{requirement} {source}".strip(), constraints=constraints)


def _install_torch(requirement: str) -> None:
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
    if not _is_there(requirement):  # the user has said no when he was asked
        raise InstallError(
            _("PyTorch was not installed, so nothing after it was either; press the button again to install all of it.")
        )


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
