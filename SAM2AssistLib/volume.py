"""A CT volume in memory: voxels in Hounsfield units, where they lie in the patient, and how they are shown.

Arrays are indexed ``(k, j, i)``, points in voxel units are written ``(i, j, k)``, and the geometry is one matrix from
voxel indices to LPS millimetres (the frame of DICOM and ITK). RAS, the frame of Slicer, is the same
with x and y negated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from SAM2AssistLib.errors import InputError

INT16 = np.iinfo(np.int16)

# Both the frames of the boundary are related by this, and it is its own inverse.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# The LPS component that changes from one slice to the next in a view of that name.
_LPS_COMPONENT_OF = {"sagittal": 0, "coronal": 1, "axial": 2}

# Cosine between two axes above which a grid counts as sheared: over 500 slices it is a slip of half a slice.
MAX_SHEAR_COSINE = 1e-3

# Relative difference that rounding to single precision and short decimal headers may cause.
SPACING_TOLERANCE = 1e-3

# More voxels are not needed to place a percentile, and a whole-body CT has a thousand times as many.
_WINDOW_SAMPLES = 1_000_000

# Between these lie fat, organs and vessels with contrast; outside lie air, lung, bone and metal, which would widen a
# window until organs look alike.
_TISSUE_HU = (-200, 300)


@dataclass(frozen=True)
class Window:
    """The range of Hounsfield units that is spread over the grey scale.

    Attributes
    ----------
    level : float
        Centre of the range in HU.
    width : float
        Size of the range in HU, above 0.

    Raises
    ------
    InputError
        If level or width is not finite or the width is not above 0.
    """

    level: float
    width: float

    def __post_init__(self) -> None:
        """Refuse a window that could not be applied."""
        if not (np.isfinite(self.level) and np.isfinite(self.width) and self.width > 0):
            raise InputError(
                f"A window needs a finite level and a width above 0 HU, but level {self.level} and width {self.width} "
                "were given."
            )

    @property
    def low(self) -> float:
        """HU shown as black."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """HU shown as white."""
        return self.level + self.width / 2

    def apply(self, hu: ArrayLike) -> NDArray[np.float32]:
        """Map HU to the grey scale, in an array of the same shape: 0 at `low` and below, 1 at `high` and above."""
        grey = np.array(hu, dtype=np.float32)
        grey -= np.float32(self.low)
        grey /= np.float32(self.width)
        return np.clip(grey, 0.0, 1.0, out=grey)


WINDOW_PRESETS: dict[str, Window] = {
    "abdomen": Window(40, 400),
    "liver": Window(60, 180),
    "mediastinum": Window(50, 350),
    "lung": Window(-600, 1500),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "angiography": Window(300, 600),
    "wide": Window(100, 2200),
}


def automatic_window(array: NDArray[Any]) -> Window:
    """Choose a window that shows the tissue of a volume, whatever its scale.

    Parameters
    ----------
    array : ndarray
        Voxels of any shape, in HU where they are known.

    Returns
    -------
    Window
        From the 1st to the 99th percentile of the soft tissue; of all voxels if the values are no HU (nothing below the
        soft tissue, as in MR) or hardly any of them is soft tissue.

    Raises
    ------
    InputError
        If the array is empty.
    """
    flat = np.asarray(array).reshape(-1)
    if flat.size == 0:
        raise InputError("A window cannot be chosen for an image without voxels.")
    sample = flat[:: max(1, flat.size // _WINDOW_SAMPLES)].astype(np.float32)
    tissue = sample[(sample > _TISSUE_HU[0]) & (sample < _TISSUE_HU[1])]
    is_hu = sample.min() < _TISSUE_HU[0]
    chosen = tissue if is_hu and tissue.size > 0.01 * sample.size else sample
    low, high = (float(value) for value in np.percentile(chosen, (1.0, 99.0)))
    return Window(level=round((low + high) / 2), width=max(1, round(high - low)))


@dataclass(frozen=True, eq=False)
class CTVolume:
    """A CT volume and its place in the patient; nothing in it changes after it was made.

    Attributes
    ----------
    array : ndarray of int16, shape (k, j, i)
        Hounsfield units, read-only.
    ijk_to_lps : ndarray of float64, shape (4, 4)
        From continuous voxel indices (i, j, k), 0 at the centre of the first voxel, to LPS mm; read-only. Oblique,
        flipped and left-handed grids are allowed, sheared and singular ones are not.
    source : Path or None
        The file or folder it was read from.
    warnings : tuple of str
        What the user should know about this image, one sentence each.
    dicom_files : tuple of Path
        The file of each slice k if the slices are those of a DICOM series, else empty.

    Raises
    ------
    InputError
        If array or matrix break these rules.
    """

    array: NDArray[np.int16]
    ijk_to_lps: NDArray[np.float64]
    source: Path | None = None
    warnings: tuple[str, ...] = ()
    dicom_files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Check the rules and lock the arrays."""
        _check_shape(self.array)
        if self.array.dtype != np.int16:
            raise InputError(f"A CT volume holds int16 Hounsfield units, but {self.array.dtype} values were given.")
        if self.dicom_files and len(self.dicom_files) != self.array.shape[0]:
            raise InputError(
                f"A volume of {self.array.shape[0]} slices cannot belong to {len(self.dicom_files)} DICOM files."
            )
        # Views are locked rather than the caller's own arrays, which stay as writable as they were.
        locked_array, locked_matrix = self.array.view(), checked_ijk_to_lps(self.ijk_to_lps)
        locked_array.flags.writeable = locked_matrix.flags.writeable = False
        object.__setattr__(self, "array", locked_array)
        object.__setattr__(self, "ijk_to_lps", locked_matrix)

    @classmethod
    def read(cls, path: str | Path, *, series: str | None = None) -> CTVolume:
        """Read a CT from a file or from a folder with a DICOM series.

        Parameters
        ----------
        path : str or Path
            A NIfTI, NRRD or MHA file, any other file SimpleITK reads, a folder with DICOM files, or one of these files.
        series : str, optional
            Number, as messages list it, or UID of the series, where a folder holds several; no meaning for other files.

        Raises
        ------
        InputError
            If it does not exist, cannot be read, or is not one CT volume; the sentence says which and what to do.
        """
        # Imported here so that the volume itself needs nothing but NumPy.
        from SAM2AssistLib.io.readers import read_volume

        return read_volume(path, series=series)

    @classmethod
    def from_array(
        cls,
        array_kji: ArrayLike,
        spacing_ijk: Sequence[float],
        ijk_to_lps: ArrayLike,
        *,
        source: Path | None = None,
        warnings: Sequence[str] = (),
        dicom_files: Sequence[Path] = (),
    ) -> CTVolume:
        """Make a volume of voxels that are in memory.

        Parameters
        ----------
        array_kji : array_like, shape (k, j, i)
            Hounsfield units of any real type. A writable array is copied; a read-only int16 array is taken as it is.
        spacing_ijk : sequence of 3 floats
            Distance of neighbouring voxels along i, j and k in mm, which has to agree with the matrix.
        ijk_to_lps : array_like, shape (4, 4)
            From voxel indices (i, j, k) to LPS mm, spacing included.
        source, warnings, dicom_files
            See the attributes of the same name.

        Raises
        ------
        InputError
            If the array is not three-dimensional, is empty or holds NaN or infinite values, or if the geometry is
            singular, sheared or contradicts the spacing.
        """
        given = np.asarray(array_kji)
        _check_shape(given)
        matrix = checked_ijk_to_lps(ijk_to_lps)
        _check_spacing(spacing_ijk, matrix)
        hu, notes = to_hounsfield_int16(given)
        if np.shares_memory(hu, given) and given.flags.writeable:
            hu = hu.copy()
        return cls(
            array=hu,
            ijk_to_lps=matrix,
            source=source,
            warnings=(*warnings, *notes),
            dicom_files=tuple(dicom_files),
        )

    @property
    def shape_kji(self) -> tuple[int, int, int]:
        """Number of voxels along k, j and i."""
        n_k, n_j, n_i = self.array.shape
        return int(n_k), int(n_j), int(n_i)

    @cached_property
    def spacing_ijk(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along i, j and k in mm."""
        spacing_i, spacing_j, spacing_k = np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0)
        return float(spacing_i), float(spacing_j), float(spacing_k)

    @cached_property
    def ijk_to_ras(self) -> NDArray[np.float64]:
        """Matrix of shape (4, 4) from voxel indices (i, j, k) to RAS mm."""
        return np.asarray(LPS_TO_RAS @ self.ijk_to_lps, dtype=np.float64)

    @cached_property
    def lps_to_ijk(self) -> NDArray[np.float64]:
        """Matrix of shape (4, 4) from LPS mm to continuous voxel indices (i, j, k)."""
        return np.asarray(np.linalg.inv(self.ijk_to_lps), dtype=np.float64)

    def lps_from_index_ijk(self, index_ijk: ArrayLike) -> NDArray[np.float64]:
        """Where voxel indices (i, j, k) lie, in LPS mm; shape (3,) or (n, 3) in and out."""
        return _transformed(self.ijk_to_lps, index_ijk)

    def ras_from_index_ijk(self, index_ijk: ArrayLike) -> NDArray[np.float64]:
        """Where voxel indices (i, j, k) lie, in RAS mm; shape (3,) or (n, 3) in and out."""
        return _transformed(self.ijk_to_ras, index_ijk)

    def index_ijk_from_lps(self, point_lps: ArrayLike) -> NDArray[np.float64]:
        """Give the continuous voxel indices (i, j, k) of points in LPS mm; shape (3,) or (n, 3) in and out."""
        return _transformed(self.lps_to_ijk, point_lps)

    def index_ijk_from_ras(self, point_ras: ArrayLike) -> NDArray[np.float64]:
        """Give the continuous voxel indices (i, j, k) of points in RAS mm; shape (3,) or (n, 3) in and out."""
        return _transformed(self.lps_to_ijk @ LPS_TO_RAS, point_ras)

    def contains_index_ijk(self, index_ijk: ArrayLike) -> bool:
        """Whether a point (i, j, k), in continuous voxel indices, lies in a voxel: from -0.5 up to below n - 0.5."""
        index = np.asarray(index_ijk, dtype=np.float64)
        if index.shape != (3,):
            raise InputError(f"A voxel position has three numbers (i, j, k), but an array of shape {index.shape} came.")
        return bool(np.all(index >= -0.5) and np.all(index < np.array(self.shape_kji[::-1]) - 0.5))

    def slice_hu(self, axis: int, index: int) -> NDArray[np.int16]:
        """One slice of the array, without a copy.

        Parameters
        ----------
        axis : int
            Array axis the slice is perpendicular to: 0 = k, 1 = j, 2 = i.
        index : int
            Number of the slice, from 0.

        Returns
        -------
        ndarray of int16, read-only
            Its rows and columns are the two other array axes, in their order: (j, i), (k, i) or (k, j).

        Raises
        ------
        InputError
            If there is no such axis or no such slice.
        """
        _check_axis(axis)
        count = self.array.shape[axis]
        if not 0 <= index < count:
            raise InputError(f"There is no slice {index} along array axis {axis}, which has slices 0 to {count - 1}.")
        selection: list[slice | int] = [slice(None)] * 3
        selection[axis] = int(index)
        return self.array[tuple(selection)]

    def slice_spacing(self, axis: int) -> tuple[float, float]:
        """Distance of rows and of columns, in mm, in slices perpendicular to an array axis (0 = k, 1 = j, 2 = i)."""
        _check_axis(axis)
        spacing_kji = self.spacing_ijk[::-1]
        row, column = (spacing for other, spacing in enumerate(spacing_kji) if other != axis)
        return row, column

    def array_axis_of(self, view: str) -> int:
        """Array axis along which the slices of an anatomical view are stacked.

        Parameters
        ----------
        view : str
            "axial", "coronal" or "sagittal".

        Returns
        -------
        int
            0 = k, 1 = j or 2 = i. The three views always get three different axes, also where the grid is so oblique
            that one axis is nearest to two of them.

        Raises
        ------
        InputError
            If it is another word.
        """
        if view not in _LPS_COMPONENT_OF:
            raise InputError(f"There is no view '{view}', only axial, coronal and sagittal.")
        return 2 - self._ijk_axis_of_lps_component[_LPS_COMPONENT_OF[view]]

    @cached_property
    def _ijk_axis_of_lps_component(self) -> tuple[int, ...]:
        """For x, y and z, the voxel axis (0 = i, 1 = j, 2 = k) given to it: the assignment with the least angles."""
        cosines = np.abs(self.ijk_to_lps[:3, :3] / np.array(self.spacing_ijk))
        return max(permutations(range(3)), key=lambda axes: sum(cosines[row, axis] for row, axis in enumerate(axes)))


def to_hounsfield_int16(array: NDArray[Any]) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """Convert values of any real type to int16, and say what was lost.

    Parameters
    ----------
    array : ndarray, shape (k, j, i)
        Hounsfield units. int16 is given back as it is.

    Returns
    -------
    ndarray of int16
        Rounded to the nearest unit, and clipped to the range of int16.
    tuple of str
        One sentence if values had to be clipped, else nothing.

    Raises
    ------
    InputError
        If there are NaN or infinite values, or the values are not real numbers.
    """
    if array.dtype == np.int16:
        return array, ()
    if array.dtype.kind not in "iufb":
        raise InputError(f"A CT volume needs real numbers, but its values are of type {array.dtype}.")
    if np.can_cast(array.dtype, np.int16):
        return array.astype(np.int16), ()
    converted = np.empty(array.shape, dtype=np.int16)
    not_finite = clipped = 0
    # Slice by slice, because a float64 copy of a whole-body CT would take several GB.
    for target, values in zip(converted, array, strict=True):
        finite = np.isfinite(values)
        not_finite += values.size - int(np.count_nonzero(finite))
        rounded = np.rint(np.where(finite, values, 0).astype(np.float64))
        clipped += int(np.count_nonzero((rounded < INT16.min) | (rounded > INT16.max)))
        target[...] = np.clip(rounded, INT16.min, INT16.max)
    if not_finite:
        raise InputError(
            f"The image holds {not_finite} NaN or infinite voxels of {array.size}; replace them, for air with -1000."
        )
    if not clipped:
        return converted, ()
    return converted, (f"{clipped} voxels beyond {INT16.min} to {INT16.max} were set to these limits.",)


def checked_ijk_to_lps(ijk_to_lps: ArrayLike) -> NDArray[np.float64]:
    """Copy a matrix from voxel indices to millimetres after making sure that it describes a rectangular grid.

    Raises
    ------
    InputError
        If it is not a finite affine 4 x 4 matrix, is singular, or is sheared.
    """
    matrix = np.array(ijk_to_lps, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.all(np.isfinite(matrix)):
        raise InputError(f"The geometry has to be a 4 x 4 matrix of finite numbers, but it has shape {matrix.shape}.")
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputError("The geometry has to be an affine matrix, with 0 0 0 1 in its last row.")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if np.any(spacing == 0):
        raise InputError("The geometry has an axis along which the voxels have no distance (spacing 0).")
    directions = matrix[:3, :3] / spacing
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if abs(np.linalg.det(directions)) < MAX_SHEAR_COSINE:
        raise InputError("The geometry is singular: two of its axes point the same way, so it spans no volume.")
    if cosines.max() > MAX_SHEAR_COSINE:
        raise InputError("The geometry is sheared: its axes are not perpendicular; resample it to a rectangular grid.")
    return matrix


def _check_shape(array: NDArray[Any]) -> None:
    """Refuse what is not a three-dimensional array with voxels in it."""
    if array.ndim != 3:
        raise InputError(f"A CT volume has three axes (k, j, i), but an array with {array.ndim} was given.")
    if array.size == 0:
        raise InputError(f"The image holds no voxels: its shape (k, j, i) is {array.shape}.")


def _check_spacing(spacing_ijk: Sequence[float], ijk_to_lps: NDArray[np.float64]) -> None:
    """Refuse a spacing that is not above 0 or not that of the matrix."""
    spacing = np.array(spacing_ijk, dtype=np.float64)
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing)) or np.any(spacing <= 0):
        raise InputError(f"The spacing has to be three distances above 0 mm (i, j, k), but it is {spacing.tolist()}.")
    of_matrix = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    if not np.allclose(spacing, of_matrix, rtol=SPACING_TOLERANCE, atol=0):
        raise InputError(
            f"The spacing {spacing.tolist()} mm contradicts the matrix from voxel indices to LPS, whose columns have "
            f"the lengths {of_matrix.round(6).tolist()} mm."
        )


def _check_axis(axis: int) -> None:
    """Refuse what is no axis of a volume."""
    if axis not in (0, 1, 2):
        raise InputError(f"A volume has the array axes 0 (k), 1 (j) and 2 (i), but axis {axis} was asked for.")


def _transformed(matrix: NDArray[np.float64], points: ArrayLike) -> NDArray[np.float64]:
    """Points of shape (3,) or (n, 3) under an affine 4 x 4 matrix."""
    given = np.asarray(points, dtype=np.float64)
    if given.ndim not in (1, 2) or given.shape[-1] != 3:
        raise InputError(f"A position has three numbers, but an array of shape {given.shape} was given.")
    return given @ matrix[:3, :3].T + matrix[:3, 3]
