"""What a user says about a segment: points and boxes, and the file that holds them.

In memory every prompt is in continuous voxel indices (i, j, k) of its volume, where a whole number is the center of a
voxel. At the boundary (the user, Slicer, the prompt file) positions are RAS or LPS millimeters, or voxel indices.

The prompt file is JSON with one coordinate frame for all its positions::

    {"frame": "RAS",
     "segments": [{"name": "liver",
                   "points": [{"position": [x, y, z], "positive": true}],
                   "boxes": [{"min": [x, y, z], "max": [x, y, z]}]}]}

A file that was written beside a result also has "made_with", an object that says by what; reading passes over it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import atomic_path

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

FRAMES = ("RAS", "LPS", "IJK")

# A box thinner than this in its own unit (mm or voxels) is meant to be flat: no scanner resolves a micrometer.
FLAT_BELOW = 1e-3

# In a volume turned by less than this (in voxels, over its whole extent) a RAS box is the same as a box of voxels.
_ALIGNED_WITHIN_VOXELS = 0.01

_RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])
_VIEW_ACROSS = ("sagittal", "coronal", "axial")
_AXIS_NAMES = {"RAS": "RAS", "LPS": "LPS", "IJK": "ijk"}
_TOP_KEYS = ("frame", "segments", "made_with")
_SEGMENT_KEYS = ("name", "points", "boxes")
_POINT_KEYS = ("position", "positive")
_BOX_KEYS = ("min", "max")


@dataclass(frozen=True)
class PointPrompt:
    """A click.

    Attributes
    ----------
    index_ijk : tuple of 3 floats
        Where, in continuous voxel indices (i, j, k).
    positive : bool
        True if the point is in the segment, False if it is outside of it.
    """

    index_ijk: tuple[float, float, float]
    positive: bool = True


@dataclass(frozen=True)
class BoxPrompt:
    """A box around a segment, on one slice or through many.

    Attributes
    ----------
    min_ijk, max_ijk : tuple of 3 floats
        Its corners in continuous voxel indices (i, j, k), both within [0, n - 1] of every axis.
    axis : int or None
        Array axis (0 = k, 1 = j, 2 = i) in which the box is flat; its index there is a whole number, the same in both
        corners. None for a box in three dimensions.
    """

    min_ijk: tuple[float, float, float]
    max_ijk: tuple[float, float, float]
    axis: int | None


@dataclass(frozen=True)
class SegmentPrompts:
    """All prompts of one segment, in the order in which they were given.

    Attributes
    ----------
    name : str
        Name of the segment, unique in its file.
    points : tuple of PointPrompt
    boxes : tuple of BoxPrompt
    """

    name: str
    points: tuple[PointPrompt, ...]
    boxes: tuple[BoxPrompt, ...]


def point_from_ras(volume: CTVolume, point_ras: ArrayLike, positive: bool = True) -> PointPrompt:
    """Make a point prompt of a position in the patient.

    Parameters
    ----------
    volume : CTVolume
    point_ras : array_like, shape (3,)
        RAS mm.
    positive : bool
        Whether the point is in the segment.

    Raises
    ------
    InputError
        If the position is not finite or lies outside the volume.
    """
    return _point(volume, _three_numbers(point_ras, "the position"), positive, "RAS")


def box_from_ras(volume: CTVolume, min_ras: ArrayLike, max_ras: ArrayLike) -> BoxPrompt:
    """Make a box prompt of a box along the axes of the patient.

    A box that is flat in one RAS axis lies on one slice: of the slices across the array axis nearest to that RAS axis,
    the one through the box's center. The corners of the box are carried over to voxel indices and bounded there, so in
    an oblique volume the prompt is the smallest box of voxels around the given one. It is clipped to the volume.

    Parameters
    ----------
    volume : CTVolume
    min_ras, max_ras : array_like, shape (3,)
        RAS mm; min <= max in every axis.

    Raises
    ------
    InputError
        If a number is not finite, min is above max, the box is flat in more than one axis or lies outside the volume.
    """
    return _box(volume, _three_numbers(min_ras, "its min"), _three_numbers(max_ras, "its max"), "RAS")


def read_prompt_file(
    path: str | Path, volume: CTVolume, *, finished: Collection[str] = ()
) -> tuple[SegmentPrompts, ...]:
    """Read a prompt file for a volume.

    Parameters
    ----------
    path : str or Path
        The JSON file; its format is in the docstring of this module and in the documentation.
    volume : CTVolume
        The volume that the positions are in.
    finished : collection of str
        Names of segments that are there already: negative points alone can correct them.

    Returns
    -------
    tuple of SegmentPrompts
        At least one, each with a positive point or a box unless it is finished, names stripped of surrounding blanks.

    Raises
    ------
    InputError
        If the file cannot be read, is not JSON or does not keep the format, or if a prompt is outside the volume; the
        message names the file, the segment and the prompt.
    """
    path = Path(path)
    where = path.name
    content = _object(_parsed(path), where, "the file", _TOP_KEYS)
    frame = content.get("frame")
    if frame not in FRAMES:
        found = "has no 'frame'" if "frame" not in content else f"has the frame {json.dumps(frame)}"
        _refuse(where, f'the file {found}; it has to be "RAS" or "LPS" (mm) or "IJK" (voxel indices)')
    items = _list(content.get("segments"), where, "'segments'")
    if not items:
        _refuse(where, "there are no segments; give at least one with a name and a point or a box")
    segments: list[SegmentPrompts] = []
    for number, item in enumerate(items, 1):
        segment = _read_segment(item, volume, frame, where, number)
        if any(segment.name == other.name for other in segments):
            _refuse(where, f"two segments are named '{segment.name}'; give each its own name")
        if segment.name not in finished and not segment.boxes and not any(point.positive for point in segment.points):
            what = "all its points are negative; give it a positive point or a box as well"
            _refuse(f"{where}, segment '{segment.name}'", what)
        segments.append(segment)
    return tuple(segments)


def write_prompt_file(
    path: str | Path, segments: Sequence[SegmentPrompts], volume: CTVolume, frame: str = "RAS"
) -> str:
    """Write prompts so that reading the file for the same volume gives them back.

    Parameters
    ----------
    path : str or Path
    segments : sequence of SegmentPrompts
    volume : CTVolume
        The volume that the prompts are in.
    frame : str
        "RAS", "LPS" (mm) or "IJK" (voxel indices).

    Returns
    -------
    str
        The frame of the file. It is "IJK" in place of RAS or LPS if there are boxes and the volume is oblique: a box of
        voxels that is turned in the patient is no RAS box.

    Raises
    ------
    OutputError
        If the file cannot be written.
    ValueError
        If there is no such frame.
    """
    content = prompt_file_content(segments, volume, frame)
    with atomic_path(path) as part:
        part.write_text(prompt_file_text(content), encoding="utf-8")
    return str(content["frame"])


def prompt_file_content(
    segments: Sequence[SegmentPrompts], volume: CTVolume, frame: str = "RAS", made_with: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON object of a prompt file; parameters and exceptions as for `write_prompt_file`.

    `made_with` says by what a result was made of these prompts, in an object that readers pass over.
    """
    if frame not in FRAMES:
        raise ValueError(f"frame is {frame!r}, not one of {FRAMES}")
    if any(segment.boxes for segment in segments) and not _is_aligned(volume):
        frame = "IJK"
    content = {"frame": frame, "segments": [_segment_as_json(segment, volume, frame) for segment in segments]}
    return {**content, "made_with": dict(made_with)} if made_with else content


def prompt_file_text(content: Mapping[str, Any]) -> str:
    """Return the text of a prompt file with this content."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------------------------------------------- from the file


def _parsed(path: Path) -> Any:
    """The JSON value in a file, refusing what Python's parser lets pass: NaN, Infinity and keys that come twice."""
    where = path.name
    try:
        return json.loads(
            path.read_text(encoding="utf-8-sig"),
            parse_constant=lambda word: _refuse(where, f"{word} is not a number that can be used"),
            object_pairs_hook=lambda pairs: _unique_keys(pairs, where),
        )
    except OSError as error:
        raise InputError(f"The prompt file {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt file {where} is not text in UTF-8; save it as UTF-8 JSON.") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"The prompt file {where} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})."
        ) from error
    except ValueError as error:
        raise InputError(f"The prompt file {where} holds a number of too many digits.") from error
    except RecursionError as error:
        raise InputError(f"The prompt file {where} is nested too deeply to be a prompt file.") from error


def _unique_keys(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            _refuse(where, f"the key '{key}' comes twice in one object")
    return dict(pairs)


def _read_segment(item: Any, volume: CTVolume, frame: str, where: str, number: int) -> SegmentPrompts:
    item = _object(item, where, f"segment {number}", _SEGMENT_KEYS)
    name = item.get("name")
    if not isinstance(name, str) or not name.strip() or re.search("[\0\ud800-\udfff]", name):
        _refuse(where, f"segment {number} has no name of text; give it a 'name' of at least one letter")
    name = name.strip()
    where = f"{where}, segment '{name}'"
    points = tuple(
        _read_point(point, volume, frame, where, f"point {n}")
        for n, point in enumerate(_list(item.get("points", []), where, "'points'"), 1)
    )
    boxes = tuple(
        _read_box(box, volume, frame, where, f"box {n}")
        for n, box in enumerate(_list(item.get("boxes", []), where, "'boxes'"), 1)
    )
    if not points and not boxes:
        _refuse(where, "it has neither points nor boxes; give it at least one")
    return SegmentPrompts(name, points, boxes)


def _read_point(item: Any, volume: CTVolume, frame: str, where: str, what: str) -> PointPrompt:
    item = _object(item, where, what, _POINT_KEYS)
    position = _position(item, "position", where, what)
    positive = item.get("positive", True)
    if not isinstance(positive, bool):
        _refuse(where, f"{what}: 'positive' has to be true or false, not {_shown(positive)}")
    try:
        return _point(volume, position, positive, frame)
    except InputError as error:
        raise InputError(f"{where}, {what}: {error}") from error


def _read_box(item: Any, volume: CTVolume, frame: str, where: str, what: str) -> BoxPrompt:
    item = _object(item, where, what, _BOX_KEYS)
    low, high = (_position(item, key, where, what) for key in _BOX_KEYS)
    try:
        return _box(volume, low, high, frame)
    except InputError as error:
        raise InputError(f"{where}, {what}: {error}") from error


def _refuse(where: str, reason: str) -> NoReturn:
    raise InputError(f"{where}: {reason}.")


def _shown(value: Any) -> str:
    """A JSON value, short enough for a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _object(value: Any, where: str, what: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, f"{what} has to be an object with the keys {', '.join(keys)}, not {_shown(value)}")
    for key in value:
        if key not in keys:
            beginnings = [known for known in keys if key and known.startswith(key.lower())]
            close = beginnings or get_close_matches(key.lower(), keys, n=1, cutoff=0.5)
            hint = f"use '{close[0]}'" if close else f"it may have {', '.join(keys)}"
            _refuse(where, f"{what} has the unknown key '{key}'; {hint}")
    return value


def _list(value: Any, where: str, what: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(where, f"{what} has to be a list" if value is None else f"{what} has to be a list, not {_shown(value)}")
    return value


def _position(item: dict[str, Any], key: str, where: str, what: str) -> NDArray[np.float64]:
    if key not in item:
        _refuse(where, f"{what} has no '{key}'")
    value = item[key]
    is_numbers = isinstance(value, list) and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) for number in value
    )
    if not is_numbers or len(value) != 3:
        _refuse(where, f"{what}: '{key}' has to be three numbers, not {_shown(value)}")
    try:
        return _three_numbers(value, f"'{key}'")
    except InputError as error:
        raise InputError(f"{where}, {what}: {error}") from error


# ------------------------------------------------------------------------------------------------------- geometry


def _three_numbers(value: ArrayLike, what: str) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except OverflowError:
        numbers = np.full(3, math.inf)
    if numbers.shape != (3,):
        raise InputError(f"{what} has to be three numbers, but has shape {numbers.shape}.")
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} holds a number that is not finite.")
    return numbers


def _to_index(volume: CTVolume, points: NDArray[np.float64], frame: str) -> NDArray[np.float64]:
    """Positions of a frame, shape (..., 3), as continuous voxel indices (i, j, k)."""
    if frame == "IJK":
        return points
    return volume.index_ijk_from_ras(points if frame == "RAS" else points * _RAS_FROM_LPS)


def _from_index(volume: CTVolume, index_ijk: ArrayLike, frame: str) -> NDArray[np.float64]:
    index = np.asarray(index_ijk, dtype=np.float64)
    if frame == "IJK":
        return index
    points = volume.ras_from_index_ijk(index)
    return points if frame == "RAS" else points * _RAS_FROM_LPS


def _corners(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """The eight corners of a box, shape (8, 3)."""
    return np.array(list(product(*zip(low, high, strict=True))))


def _size_ijk(volume: CTVolume) -> NDArray[np.float64]:
    return np.array(volume.shape_kji[::-1], dtype=np.float64)


def _extent(volume: CTVolume, frame: str) -> str:
    """The bounds of a volume, as words of a sentence: 'R -12.0 to 30.0, A ... mm'."""
    size = _size_ijk(volume)
    if frame == "IJK":
        return ", ".join(f"{axis} 0 to {int(n) - 1}" for axis, n in zip("ijk", size, strict=True))
    corners = _from_index(volume, _corners(np.full(3, -0.5), size - 0.5), frame)
    bounds = zip(_AXIS_NAMES[frame], corners.min(axis=0), corners.max(axis=0), strict=True)
    return ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in bounds) + " mm"


def _told(position: NDArray[np.float64], frame: str) -> str:
    digits = ", ".join(f"{number:g}" for number in np.round(position, 2))
    return f"({digits}) in {frame}"


def _point(volume: CTVolume, position: NDArray[np.float64], positive: bool, frame: str) -> PointPrompt:
    index = _to_index(volume, position, frame)
    if not volume.contains_index_ijk(index):
        raise InputError(
            f"the point {_told(position, frame)} lies outside the volume, which spans {_extent(volume, frame)}."
        )
    i, j, k = (float(number) for number in index)
    return PointPrompt((i, j, k), bool(positive))


def _box(volume: CTVolume, low: NDArray[np.float64], high: NDArray[np.float64], frame: str) -> BoxPrompt:
    names = _AXIS_NAMES[frame]
    wrong = [axis for axis in range(3) if low[axis] > high[axis]]
    if wrong:
        axis = wrong[0]
        raise InputError(
            f"the box is empty, because its min ({low[axis]:g}) is above its max ({high[axis]:g}) in {names[axis]}."
        )
    flat = [axis for axis in range(3) if high[axis] - low[axis] < FLAT_BELOW]
    if len(flat) > 1:
        raise InputError(
            f"the box is empty, because it is flat in {' and '.join(names[axis] for axis in flat)}; "
            "a box on one slice is flat in one axis only."
        )
    corners = _to_index(volume, _corners(low, high), frame)
    low_ijk, high_ijk = corners.min(axis=0), corners.max(axis=0)
    array_axis = None
    if flat:
        array_axis = 2 - flat[0] if frame == "IJK" else volume.array_axis_of(_VIEW_ACROSS[flat[0]])
        # Half a voxel belongs to the slice above, as for a point (the volume reaches from -0.5 up to below n - 0.5).
        middle = math.floor((low_ijk[2 - array_axis] + high_ijk[2 - array_axis]) / 2 + 0.5)
        low_ijk[2 - array_axis] = high_ijk[2 - array_axis] = middle
    size = _size_ijk(volume)
    if (high_ijk < -0.5).any() or (low_ijk >= size - 0.5).any():
        raise InputError(
            f"the box from {_told(low, frame)} to {_told(high, frame)} lies outside the volume, "
            f"which spans {_extent(volume, frame)}."
        )
    low_ijk, high_ijk = (np.clip(bound, 0.0, size - 1.0) for bound in (low_ijk, high_ijk))
    return BoxPrompt(_as_tuple(low_ijk), _as_tuple(high_ijk), _flat_array_axis(low_ijk, high_ijk, array_axis))


def _flat_array_axis(low_ijk: NDArray[np.float64], high_ijk: NDArray[np.float64], array_axis: int | None) -> int | None:
    """The array axis in which a clipped box is flat: clipping can leave one slice of a box, or only an edge of it."""
    flat = [2 - axis for axis in range(3) if high_ijk[axis] - low_ijk[axis] < FLAT_BELOW]
    if len(flat) > 1:
        raise InputError("the box reaches less than half a voxel into the volume; move it inside.")
    return flat[0] if flat and low_ijk[2 - flat[0]] == high_ijk[2 - flat[0]] else array_axis


def _as_tuple(numbers: NDArray[np.float64]) -> tuple[float, float, float]:
    i, j, k = (float(number) for number in numbers)
    return i, j, k


def _is_aligned(volume: CTVolume) -> bool:
    """Whether the axes of the volume are those of the patient (in any order and direction)."""
    matrix = np.abs(volume.ijk_to_ras[:3, :3])
    across = np.sort(matrix * (_size_ijk(volume) - 1.0), axis=0)[:2]  # mm each axis strays from a RAS axis
    return bool(across.max() < _ALIGNED_WITHIN_VOXELS * min(volume.spacing_ijk))


# ----------------------------------------------------------------------------------------------------- to the file


def _segment_as_json(segment: SegmentPrompts, volume: CTVolume, frame: str) -> dict[str, Any]:
    points = [
        {"position": _from_index(volume, point.index_ijk, frame).tolist(), "positive": point.positive}
        for point in segment.points
    ]
    return {
        "name": segment.name,
        "points": points,
        "boxes": [_box_as_json(box, volume, frame) for box in segment.boxes],
    }


def _box_as_json(box: BoxPrompt, volume: CTVolume, frame: str) -> dict[str, Any]:
    corners = _from_index(volume, [box.min_ijk, box.max_ijk], frame)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if box.axis is not None:
        flat = 2 - box.axis if frame == "IJK" else int(np.argmax(np.abs(volume.ijk_to_ras[:3, 2 - box.axis])))
        low[flat] = high[flat] = (low[flat] + high[flat]) / 2
    return {"min": low.tolist(), "max": high.tolist()}
