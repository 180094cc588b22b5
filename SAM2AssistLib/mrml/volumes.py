"""Volume nodes as CT volumes.

A `CTVolume` made here is in the node's own RAS coordinates, without its parent transform: a volume that is moved with
all its prompts is the same volume. World points are carried over with `world_to_local`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.words import translator
from SAM2AssistLib.volume import LPS_TO_RAS, CTVolume

_ = translator(__file__)

NOT_HU = _(
    "The darkest voxel of {name} is {darkest}, so it is probably no CT in Hounsfield units; a window is chosen"
    " automatically and results may be worse."
)
AIR_BELOW_HU = -100
"""A CT has air, or at least fat, below this; what has nothing there is taken for another kind of image."""

THICK_BY = 1.5
"""Slices count as thick if they are so many times as far apart as the pixels within them."""


@dataclass(frozen=True)
class VoxelState:
    """What changes when a node's voxels, its grid or the time point it shows change; cheap to take and to compare."""

    image: str
    modified: int
    grid: bytes


def voxel_state(node: Any) -> VoxelState:
    """Take the state of a volume node."""
    image = node.GetImageData()
    if image is None:
        return VoxelState("", 0, b"")
    return VoxelState(image.GetAddressAsString(""), voxels_modified(image), ijk_to_ras(node).round(9).tobytes())


def voxels_modified(image: Any) -> int:
    """Return VTK's count of the last change of an image or of its voxels."""
    scalars = image.GetPointData().GetScalars()
    return max(image.GetMTime(), scalars.GetMTime() if scalars is not None else 0)


def ijk_to_ras(node: Any) -> NDArray[np.float64]:
    """Return the (4, 4) matrix from voxel indices (i, j, k) to the node's own RAS mm."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return array_of(matrix)


def array_of(matrix: Any) -> NDArray[np.float64]:
    """Return a vtkMatrix4x4 as an array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def local_to_world(node: Any) -> NDArray[np.float64]:
    """Return the (4, 4) matrix from a node's own RAS mm to those of the world.

    Raises
    ------
    InputError
        If the node is under a transform that is not linear.
    """
    import vtk

    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    if not (parent.IsTransformToWorldLinear() and parent.GetMatrixTransformToWorld(matrix)):
        raise InputError(
            _(
                "{name} is under the non-linear transform {transform}; harden it on the volume in the Transforms"
                " module, which resamples it, and choose the result."
            ).format(name=node.GetName(), transform=parent.GetName())
        )
    return array_of(matrix)


def image_of(node: Any) -> Any:
    """Return the vtkImageData of a volume node; one whose file was not found when its scene was opened has none.

    Raises
    ------
    InputError
        If there is no node, or no voxels.
    """
    image = None if node is None else node.GetImageData()
    if image is None or not image.GetNumberOfPoints() or image.GetPointData().GetScalars() is None:
        said = _("{name} has no image; choose a CT volume.")
        raise InputError(said.format(name=node.GetName() if node is not None else _("The input")))
    return image


def moved(matrix: NDArray[np.floating], points: ArrayLike) -> NDArray[np.float64]:
    """Carry points (3,) or (n, 3) over with a (4, 4) matrix."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def world_to_local(node: Any, points_ras: ArrayLike) -> NDArray[np.float64]:
    """Carry world RAS points (3,) or (n, 3) over to the node's own RAS; raises as `local_to_world`."""
    return moved(np.linalg.inv(local_to_world(node)), points_ras)


def volume_from_node(node: Any) -> CTVolume:
    """Return a volume node as a CT volume, in its own RAS coordinates; converts its voxels where they are no int16.

    Parameters and errors are those of `look_at_volume`, and what it returns is what that function's reader does.
    """
    return look_at_volume(node)[1]()


def look_at_volume(node: Any) -> tuple[CTVolume, Callable[[], CTVolume]]:
    """Look at a volume node in the window's thread, which takes no time however large it is.

    Voxels of int16, as CT has them, are not copied: the volume looks at VTK's own array, which lives on while it does.
    Whoever changes voxels in place changes them there too; `voxel_state` tells, and a workspace then ends what it does.

    Parameters
    ----------
    node : vtkMRMLScalarVolumeNode
        One component, in HU; under no or under a linear transform.

    Returns
    -------
    outline : CTVolume
        Grid and warnings; its voxels are all 0 where they have to be converted first.
    read : callable
        Gives the volume with its voxels, in any thread; raises InputError if they are no finite numbers.

    Raises
    ------
    InputError
        If there is no node or no image, if the node is under a non-linear transform, or if its grid cannot be used; the
        sentence names it.
    """
    image = image_of(node)
    if image.GetNumberOfScalarComponents() != 1:
        said = _("{name} is a color image; choose a CT volume with one value for each voxel.")
        raise InputError(said.format(name=node.GetName()))
    local_to_world(node)  # refuses what is warped
    name, matrix = node.GetName(), LPS_TO_RAS @ ijk_to_ras(node)
    darkest = image.GetScalarRange()[0]  # VTK keeps it; the views have asked for it before
    notes = () if darkest < AIR_BELOW_HU else (NOT_HU.format(name=name, darkest=f"{darkest:.0f}"),)
    voxels = array_view(node)

    def read(array: NDArray[Any] = voxels) -> CTVolume:
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        try:
            return CTVolume.from_array(array, tuple(spacing), matrix, warnings=notes)
        except InputError as error:
            raise InputError(_("{name}: {reason}").format(name=name, reason=error)) from error

    outline = read(voxels if voxels.dtype == np.int16 else np.broadcast_to(np.int16(0), voxels.shape))
    return outline, read


def automatic_axis(volume: CTVolume) -> int:
    """Choose the array axis (0 = k, 1 = j, 2 = i) to propagate along.

    Where slices are clearly thicker than their pixels, it is the axis of the slices as they were acquired; otherwise
    the axis nearest to the patient's, along which the models have learnt.
    """
    spacing_kji = np.array(volume.spacing_ijk[::-1])
    thickest = int(spacing_kji.argmax())
    if spacing_kji[thickest] >= THICK_BY * np.delete(spacing_kji, thickest).max():
        return thickest
    return volume.array_axis_of("axial")


def array_view(node: Any) -> NDArray[Any]:
    """Return the voxels (k, j, i) of a volume node, read-only and without a copy."""
    from vtk.util.numpy_support import vtk_to_numpy

    image = node.GetImageData()
    view = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    view.flags.writeable = False
    return view
