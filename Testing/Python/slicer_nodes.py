"""What a segmentation node of the real MRML holds, as arrays; needs slicer-core."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def segment_voxels(
    node: Any, number: int, shape_kji: tuple[int, int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the voxels of a segment on the whole grid, and the matrix from voxel indices (i, j, k) to LPS mm."""
    import slicer
    import vtk

    image = slicer.vtkOrientedImageData()
    assert node.GetBinaryLabelmapRepresentation(node.GetSegmentation().GetNthSegmentID(number), image)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    ijk_to_ras = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    mask = np.zeros(shape_kji, bool)
    i0, i1, j0, j1, k0, k1 = image.GetExtent()
    scalars = image.GetPointData().GetScalars()
    if scalars is not None and i1 >= i0:
        voxels = np.array(scalars, copy=True).reshape(k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
        mask[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = voxels > 0
    return mask, np.diag([-1, -1, 1, 1]) @ ijk_to_ras
