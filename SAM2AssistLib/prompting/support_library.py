"""The support library: finished cases on disk, to segment new volumes like them.

A case is a folder with the image, its masks and a small description. What a network made of it is cached beside it, and
made again when these files, the network, its adapter or the window change. Nothing is ever unpickled.

It lies in ``~/.local/share/sam2assist/supports``, below ``XDG_DATA_HOME`` if that is set; ``SAM2ASSIST_SUPPORTS`` names
another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import SimpleITK as sitk
import torch
from torch import Tensor

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.views import View
from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.atomic import atomic_path, has_text_name, shown
from SAM2AssistLib.io.itk_image import image_of
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import write_segmentation
from SAM2AssistLib.prompting.orientation import Orientation
from SAM2AssistLib.prompting.support import Support, SupportCase, class_name, read_masks, support_steps
from SAM2AssistLib.prompting.voxel_features import GRID, VoxelFeatures
from SAM2AssistLib.volume import CTVolume, Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

IMAGE_FILE, MASK_FILE, ENTRY_FILE = "image.nrrd", "masks.seg.nrrd", "support.json"
LEVELS = 3
LONGEST_NAME = 200
"""Bytes of the name of a case; a file system takes 255, and while it is added a case has a longer one."""

ADD_STEPS = 2
LAYOUT = 1
"""Of the cached features; another number makes all of them anew."""


@dataclass(frozen=True)
class Entry:
    """A case of the library.

    Attributes
    ----------
    name : unique in the library.
    classes : that it shows.
    added : date and time, ISO 8601.
    """

    name: str
    classes: tuple[str, ...]
    added: str


def library_folder() -> Path:
    """Return the folder of the library; it need not exist."""
    override = os.environ.get("SAM2ASSIST_SUPPORTS", "").strip()
    if override:
        return Path(override).expanduser()
    data = os.environ.get("XDG_DATA_HOME", "").strip()
    return (Path(data).expanduser() if data else Path.home() / ".local" / "share") / "sam2assist" / "supports"


class SupportLibrary:
    """Finished cases in a folder.

    Parameters
    ----------
    folder : `library_folder` if not given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = library_folder() if folder is None else folder

    def entries(self) -> tuple[Entry, ...]:
        """List the cases by name; what is no case is passed over, and of what is damaged `damaged` tells."""
        return tuple(found for found in self._looked() if isinstance(found, Entry))

    def damaged(self) -> tuple[str, ...]:
        """Tell, in a sentence for each, of the cases that cannot be used."""
        return tuple(str(found) for found in self._looked() if isinstance(found, InputError))

    def names(self) -> tuple[str, ...]:
        """List the names that no case can be added by any more, whatever is there."""
        return tuple(sorted(place.name for place in self.folder.glob("*")))

    def entry(self, name: str) -> Entry:
        """Look up a case.

        Raises
        ------
        InputError
            If there is none of that name, or its description is damaged.
        """
        path = self._place(name) / ENTRY_FILE
        if not _is_case(path.parent):
            raise InputError(f"There is no support case {name!r}; see 'sam2assist support list'.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            classes = dict.fromkeys(class_name(str(each)) for each in content["classes"])
            return Entry(name, tuple(classes), str(content["added"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"The support case {name!r} is damaged ({path}); remove it and add it again.") from error

    def add(self, case: SupportCase, name: str | None = None) -> Entry:
        """Add a case; from now on it can be used.

        Raises
        ------
        InputError
            If the name is taken or cannot be the name of a folder.
        OutputError
            If the library cannot be written.
        """
        *_, entry = self.adding(case, name)
        assert isinstance(entry, Entry)
        return entry

    def adding(self, case: SupportCase, name: str | None = None) -> Iterator[Entry | tuple[int, int]]:
        """Do as `add`, step by step; yields steps done and steps in all, last the entry.

        Left before that, it leaves nothing in the library.
        """
        name = (case.name if name is None else name).strip()
        target = self._place(name)
        if not has_text_name(self.folder):  # of which ITK ends the process
            raise OutputError(
                f"The path {shown(self.folder)} is no text in UTF-8; choose a folder with SAM2ASSIST_SUPPORTS."
            )
        if os.path.lexists(target):
            raise InputError(f"There is a support case {name!r} already; remove it or choose another with --name.")
        masks = [NamedMask(n, m) for n, m in case.masks.items() if m.any()]
        entry = Entry(name, tuple(m.name for m in masks), time.strftime("%Y-%m-%dT%H:%M:%S"))
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            yield 0, ADD_STEPS
            sitk.WriteImage(image_of(case.volume.array, case.volume.ijk_to_lps), str(part / IMAGE_FILE), True)
            yield 1, ADD_STEPS
            write_segmentation(part / MASK_FILE, masks, case.volume)
            yield 2, ADD_STEPS
            content = {"name": name, "classes": entry.classes, "added": entry.added}
            (part / ENTRY_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            part.replace(target)
        except (OSError, RuntimeError) as error:
            raise OutputError(
                f"The support library {self.folder} cannot be written ({error}); choose a folder with "
                "SAM2ASSIST_SUPPORTS."
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        yield entry

    def remove(self, name: str) -> None:
        """Delete a case, or what is left of one, and all that was cached of it; of a link, the link alone.

        Raises
        ------
        InputError
            If there is none of that name, or the folder holds something else.
        OutputError
            If it cannot be deleted.
        """
        place = self._place(name)
        is_link = place.is_symlink()
        if not place.is_dir() and not is_link:
            raise InputError(f"There is no support case {name!r}; see 'sam2assist support list'.")
        if not is_link and not _is_case(place):
            raise InputError(f"{place} is no support case, but holds other files; move them or delete them yourself.")
        try:
            if is_link:
                place.unlink()
            else:
                shutil.rmtree(place)
        except OSError as error:
            raise OutputError(f"{place} cannot be deleted ({error.strerror}); check who owns the folder.") from error

    def case(self, name: str) -> SupportCase:
        """Read a case as it was added, or as somebody has corrected it since."""
        self.entry(name)
        volume = CTVolume.read(self._place(name) / IMAGE_FILE)
        masks, notes = read_masks(self.masks_file(name), volume)
        told = tuple(f"Support case {name!r}: {note}" for note in [*volume.warnings, *notes])
        return SupportCase(name, volume, masks, told)

    def masks_file(self, name: str) -> Path:
        """Return the file with the masks of a case."""
        return self._place(name) / MASK_FILE

    def prepare(self, engine: Engine, name: str, window: Window) -> Support:
        """Give a case as the network sees it, from the cache where that fits."""
        *_, support = self.preparing(engine, name, window)
        assert isinstance(support, Support)
        return support

    def preparing(self, engine: Engine, name: str, window: Window) -> Iterator[Support | tuple[int, int]]:
        """Do as `prepare`, step by step; yields slices done and slices in all, last the case."""
        case, folder = self.case(name), self._place(name)
        path = folder / f"features-{_key(engine, window, folder)}.safetensors"
        found = _read_cached(path, engine, case, window) if path.is_file() else None
        if found is not None:
            yield found
            return
        for step in support_steps(engine, case, window):
            if isinstance(step, Support):
                self._cache(path, engine, step)
            yield step

    @staticmethod
    def _cache(path: Path, engine: Engine, support: Support) -> None:
        """Keep what was made of a case, in place of what another network or window made of it.

        Where nothing can be written, the next time takes as long as this one.
        """
        others = [old for old in path.parent.glob(f"features-{engine.spec.name}-*.safetensors") if old != path]
        with suppress(OutputError, OSError):
            _write_cached(path, support)
            for old in others:
                old.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        if not name or name.startswith(".") or any(c in name for c in "/\\:\0"):
            raise InputError(
                f"{name!r} cannot name a support case; give it a name of letters, digits, '-' and '_', as with --name."
            )
        if not has_text_name(name):
            raise InputError(
                f"{name!r} is no text in UTF-8 and cannot name a support case; give it another name, as with --name."
            )
        if (length := len(name.encode())) > LONGEST_NAME:
            raise InputError(
                f"'{name[:20]}...' cannot name a support case, because it has {length} bytes and not at most "
                f"{LONGEST_NAME}; give it a shorter name, as with --name."
            )
        return self.folder / name

    def _looked(self) -> Iterator[Entry | InputError]:
        """Look up all cases by name; yields for each its entry, or why there is none."""
        for place in sorted(self.folder.glob("*")):
            # With a dot begin those that were being added when the program ended.
            if not place.name.startswith(".") and _is_case(place):
                try:
                    yield self.entry(place.name)
                except InputError as error:
                    yield error


def _is_case(place: Path) -> bool:
    """Whether a folder is a case or the rest of one: with a description, or with nothing but files of a case.

    An image alone may be somebody's only one; the library leaves none without its masks.
    """
    if not place.is_dir():
        return False
    try:
        names = {file.name for file in place.iterdir()}
        return ENTRY_FILE in names or (all(map(_is_own, names)) and names != {IMAGE_FILE})
    except OSError:
        return True  # it may not be looked into; whoever reads or deletes it is told so


def _is_own(name: str) -> bool:
    """Whether the library writes files of this name, whole or begun."""
    return name in {IMAGE_FILE, MASK_FILE, ENTRY_FILE} or name.startswith(("features-", ".sam2assist-"))


def _key(engine: Engine, window: Window, folder: Path) -> str:
    """Name of what made features: model, and a digest of weights, adapter, window, and the files of the case."""
    digest = hashlib.sha256(f"{LAYOUT} {store.expected_sha256(engine.spec)} {window}".encode())
    if engine.adapter is not None:
        for file in sorted(engine.adapter.glob("adapter_model.safetensors")):
            digest.update(store.file_sha256(file).encode())
    for name in (IMAGE_FILE, MASK_FILE):
        digest.update(store.file_sha256(folder / name).encode())
    return f"{engine.spec.name}-{digest.hexdigest()[:16]}"


def _write_cached(path: Path, support: Support) -> None:
    from safetensors.torch import save_file

    view = support.features.view
    description = {
        "classes": json.dumps(support.classes),
        "view": json.dumps([view.row, view.column, view.rows, view.columns]),
        "distance_mm": repr(support.features.distance_mm),
    }
    with atomic_path(path) as part:
        levels = {f"level {n}": level.contiguous() for n, level in enumerate(support.features.levels)}
        save_file({**levels, "shares": support.shares.contiguous()}, part, metadata=description)


def _read_cached(path: Path, engine: Engine, case: SupportCase, window: Window) -> Support | None:
    """Read cached features; None if the file is damaged, so that they are made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            description = file.metadata()
            shares = file.get_tensor("shares")
            levels = tuple(file.get_tensor(f"level {n}") for n in range(LEVELS))
        view = View(*json.loads(description["view"]))
        classes = tuple(json.loads(description["classes"]))
        features = VoxelFeatures(levels, view, float(description["distance_mm"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
    volume = Orientation.of(case.volume).turn(case.volume)
    slices = volume.shape_kji[0]
    if classes != tuple(name for name, mask in case.masks.items() if mask.any()):
        return None
    if not _is_half(shares, slices, len(classes), GRID):
        return None
    for level, stride, part in zip(levels, (16, 8, 4), (1, 4, 8), strict=True):  # from coarse to fine
        side, channels = min(engine.model.image_size // stride, GRID), engine.model.hidden_dim // part
        if not _is_half(level, slices, channels, side):
            return None
    plane = Plane(engine.model, volume, 0, window, engine.channels, engine.options)
    return Support(case.name, classes, features, shares, plane, case.notes)


def _is_half(tensor: Tensor, slices: int, channels: int, side: int) -> bool:
    """Whether a tensor has this shape and half precision."""
    return tensor.dtype == torch.float16 and tensor.shape == (slices, channels, side, side)
