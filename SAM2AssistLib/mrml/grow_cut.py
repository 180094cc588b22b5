"""Slicer's GrowCut (``vtkImageGrowCutSegment``: Zhu et al., 2014) on arrays, to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

GREY_STEPS = 1000
"""Of the image: the filter takes whole numbers."""


def grow_cut(
    image: NDArray[np.float32], seeds: NDArray[np.uint8], spacing_kji: Sequence[float]
) -> NDArray[np.unsignedinteger]:
    """Grow seeds until they meet, with the defaults of Slicer's effect "Grow from seeds".

    Parameters
    ----------
    image : (k, j, i) in [0, 1].
    seeds : (k, j, i) label values, 0 for what is to be found out.
    spacing_kji : mm.

    Returns
    -------
    The label that reached each voxel first, (k, j, i).
    """
    filter_ = slicer.vtkImageGrowCutSegment()
    filter_.SetIntensityVolume(_image_data(np.round(image * GREY_STEPS).astype(np.int16), spacing_kji))
    filter_.SetSeedLabelVolume(_image_data(seeds, spacing_kji))
    filter_.Update()
    return vtk_to_numpy(filter_.GetOutput().GetPointData().GetScalars()).reshape(image.shape)


def _image_data(array: NDArray[np.generic], spacing_kji: Sequence[float]) -> vtk.vtkImageData:
    data = vtk.vtkImageData()
    data.SetDimensions(*array.shape[::-1])
    data.SetSpacing(*(float(s) for s in spacing_kji[::-1]))
    data.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True))
    return data
