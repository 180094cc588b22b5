"""The voxels of one segment of a segmentation node, on the grid of a volume.

A segment that is written to gets a layer of its own, so that no other segment changes. Its labelmap covers what is
needed and some room to grow, and only the pixels that change are touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.mrml.volumes import array_of, ijk_to_ras, image_of, local_to_world, moved, voxels_modified
from SAM2AssistLib.mrml.words import translator

_ = translator(__file__)

LABELMAP = "Binary labelmap"
SURFACE = "Closed surface"

ON_GRID_WITHIN = 1e-3
"""Voxels by which a labelmap may lie off the volume's grid and still count as on it."""

ROOM_PIXELS = 16
"""By which a labelmap grows beyond what is needed, so that it need not grow again with the next slice."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a volume in the coordinates of a segmentation.

    Attributes
    ----------
    shape_kji : voxels along k, j and i.
    ijk_to_ras : (4, 4) from voxel indices (i, j, k) to the segmentation's own RAS mm.
    """

    shape_kji: tuple[int, int, int]
    ijk_to_ras: NDArray[np.float64]

    @classmethod
    def of(cls, volume_node: Any, segmentation_node: Any) -> Grid:
        """Take the grid of a volume node; each of both may be under a linear transform of its own.

        Raises
        ------
        InputError
            If one of them is under a non-linear transform, or the volume has no voxels.
        """
        i, j, k = image_of(volume_node).GetDimensions()
        between = np.linalg.inv(local_to_world(segmentation_node)) @ local_to_world(volume_node)
        return cls((k, j, i), between @ ijk_to_ras(volume_node))

    def is_that_of(self, other: Grid) -> bool:
        """Whether it is the same."""
        return self.shape_kji == other.shape_kji and bool(np.allclose(self.ijk_to_ras, other.ijk_to_ras, atol=1e-6))

    def holds_for(self, volume_node: Any, segmentation_node: Any) -> bool:
        """Whether it is that of both nodes as they are now."""
        try:
            return self.is_that_of(Grid.of(volume_node, segmentation_node))
        except InputError:
            return False

    def image(self, extent_ijk: tuple[int, ...], scalar_type: int) -> Any:
        """Make an empty labelmap of this extent (i0, i1, j0, j1, k0, k1)."""
        import slicer
        import vtk

        image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
        for row in range(4):
            for column in range(4):
                matrix.SetElement(row, column, float(self.ijk_to_ras[row, column]))
        image.SetGeometryFromImageToWorldMatrix(matrix)
        image.SetExtent(*extent_ijk)
        image.AllocateScalars(scalar_type, 1)
        image.GetPointData().GetScalars().Fill(0)
        return image


@dataclass(frozen=True)
class LabelmapState:
    """What changes when somebody changes a segment's voxels."""

    image: str
    modified: int


class SegmentVoxels:
    """Access to the voxels of one segment.

    Parameters
    ----------
    segmentation_node : vtkMRMLSegmentationNode
    segment_id : of a segment in it.
    grid : of the volume that it is segmented on.
    """

    def __init__(self, segmentation_node: Any, segment_id: str, grid: Grid) -> None:
        self.node, self.segment_id, self.grid = segmentation_node, segment_id, grid

    @property
    def segmentation(self) -> Any:
        """The vtkSegmentation."""
        return self.node.GetSegmentation()

    @property
    def segment(self) -> Any:
        """The vtkSegment; None once it is gone."""
        return self.segmentation.GetSegment(self.segment_id)

    def state(self) -> LabelmapState | None:
        """Take the state of its labelmap; None if there is none."""
        image = self._image()
        return None if image is None else LabelmapState(image.GetAddressAsString(""), voxels_modified(image))

    @property
    def size_bytes(self) -> int:
        """Bytes of its labelmap."""
        image = self._image()
        return 0 if image is None else int(image.GetNumberOfPoints()) * int(image.GetScalarSize())

    def read(self) -> NDArray[np.bool_]:
        """Copy its mask, bool (k, j, i), resampled where its labelmap is on another grid."""
        mask = np.zeros(self.grid.shape_kji, bool)
        image = self._image()
        if image is None or not _has_voxels(image):
            return mask
        if self._offset_ijk(image) is None:
            image = self._resampled(image, np.zeros(3), np.array(self.grid.shape_kji) - 1)
        offset = self._offset_ijk(image)
        assert offset is not None
        values = array_of_labelmap(image)
        low_kji = self._first_kji(image, offset)
        inside = [
            (max(0, int(a)), min(n, int(a) + size))
            for a, n, size in zip(low_kji, self.grid.shape_kji, values.shape, strict=True)
        ]
        if all(first < last for first, last in inside):
            target = tuple(slice(first, last) for first, last in inside)
            source = tuple(slice(f - int(a), e - int(a)) for (f, e), a in zip(inside, low_kji, strict=True))
            np.equal(values[source], self.segment.GetLabelValue(), out=mask[target])
        return mask

    def read_slice(self, axis: int, index: int) -> NDArray[np.bool_]:
        """Copy one slice of the mask, bool (rows, columns)."""
        selection: list[slice | int] = [slice(None)] * 3
        selection[axis] = index
        view = self._view()
        if view is None:
            return np.asarray(self.read()[tuple(selection)])
        values, first = view
        shape = tuple(n for a, n in enumerate(self.grid.shape_kji) if a != axis)
        mask = np.zeros(shape, bool)
        if first[axis] <= index < first[axis] + values.shape[axis]:
            selection[axis] = index - first[axis]
            corner, size = np.delete(first, axis), np.delete(values.shape, axis)
            target = mask[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
            np.equal(values[tuple(selection)], self.segment.GetLabelValue(), out=target)
        return mask

    def slices(self, axis: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Yield index and copy (rows, columns) of the slices the labelmap covers; the segment's size is its cost."""
        view = self._view()
        if view is not None:
            values, first = view
            for index in range(int(first[axis]), int(first[axis]) + values.shape[axis]):
                yield index, self.read_slice(axis, index)
            return
        image = self._image()
        if image is not None and _has_voxels(image):  # on another grid
            yield from enumerate(np.moveaxis(self.read(), axis, 0))

    def write_slice(self, axis: int, index: int, mask: NDArray[np.bool_]) -> None:
        """Replace one slice of the mask; nobody is told before `announce` or `finish`."""
        self._own_layer()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            low = np.insert([rows[0], columns[0]], axis, index)
            high = np.insert([rows[-1], columns[-1]], axis, index)
            self._cover(low, high, axis)
        view = self._view()
        if view is None:
            return
        values, first = view
        place = index - first[axis]
        if not 0 <= place < values.shape[axis]:
            return
        selection: list[slice | int] = [slice(None)] * 3
        selection[axis] = place
        corner, size = np.delete(first, axis), np.delete(values.shape, axis)
        part = mask[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        values[tuple(selection)] = part * self.segment.GetLabelValue()

    def announce(self) -> None:
        """Let the views show what has been written, and keep a closed surface as it was until `finish`."""
        image = self._image()
        if image is None:
            return
        # Not Modified() of the image: that would throw the closed surface away, slice after slice.
        if image.GetPointData().GetScalars() is not None:
            image.GetPointData().GetScalars().Modified()
        self.segmentation.InvokeEvent(self.segmentation.SourceRepresentationModified, self.segment_id)

    def finish(self) -> bool:
        """Tell everybody; returns whether there is a closed surface, which is now out of date."""
        image = self._image()
        if image is None:
            return False
        segments = [self.segmentation.GetSegment(segment_id) for segment_id in self.segmentation.GetSegmentIDs()]
        surfaces = [(segment, segment.GetRepresentation(SURFACE)) for segment in segments]
        image.Modified()  # at which Slicer throws surfaces away
        for segment, surface in surfaces:
            if surface is not None and segment.GetRepresentation(SURFACE) is not surface:
                segment.AddRepresentation(SURFACE, surface)
        draw(self.node)
        return self.segment.GetRepresentation(SURFACE) is not None

    # Inside

    def _image(self) -> Any:
        segment = self.segment
        return None if segment is None else segment.GetRepresentation(LABELMAP)

    def _view(self) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
        """Return the labelmap's values (k, j, i) without a copy, and the volume's index of the first; None if off.

        What lies outside of the volume is not among them: they are empty if all of it does.
        """
        whole = self._whole()
        if whole is None:
            return None
        values, first = whole
        low, high = (corner.clip(0, self.grid.shape_kji) for corner in (first, first + values.shape))
        return values[tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))], low

    def _whole(self) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
        """Return as `_view` does the whole labelmap, which can reach out of the volume, as after it was cropped."""
        image = self._image()
        if image is None or not _has_voxels(image):
            return None
        offset = self._offset_ijk(image)
        return None if offset is None else (array_of_labelmap(image), self._first_kji(image, offset))

    @staticmethod
    def _first_kji(image: Any, offset_ijk: NDArray[np.int64]) -> NDArray[np.int64]:
        return (np.array(image.GetExtent()[::2], np.int64) + offset_ijk)[::-1]

    def _offset_ijk(self, image: Any) -> NDArray[np.int64] | None:
        """Voxels (i, j, k) by which the labelmap's indices differ from the volume's; None if it is on another grid."""
        import vtk

        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        between = np.linalg.inv(self.grid.ijk_to_ras) @ array_of(matrix)
        offset = between[:3, 3].round()
        largest = max(self.grid.shape_kji)
        turned = np.abs(between[:3, :3] - np.eye(3)).max() * largest
        if turned > ON_GRID_WITHIN * 100 or np.abs(between[:3, 3] - offset).max() > ON_GRID_WITHIN * 100:
            return None
        return offset.astype(np.int64)

    def _resampled(self, image: Any, low_kji: NDArray[Any], high_kji: NDArray[Any]) -> Any:
        """Bring what the labelmap has in a box of voxels, both corners included, to the grid, by nearest neighbor."""
        import slicer

        reference = self.grid.image(_extent(low_kji, high_kji), image.GetScalarType())
        result = slicer.vtkOrientedImageData()
        resample = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
        if not resample(image, reference, result, False, False):
            said = _("{name} cannot be resampled to the volume's grid; export it first.")
            raise InputError(said.format(name=self.segment.GetName()))
        return result

    def _own_layer(self) -> None:
        """Make sure that the labelmap belongs to this segment alone and lies on the grid."""
        check_labelmaps(self.node)
        image = self._image()
        others = (self.segmentation.GetNthSegment(n) for n in range(self.segmentation.GetNumberOfSegments()))
        if image is not None and any(s is not self.segment and s.GetRepresentation(LABELMAP) is image for s in others):
            self.segmentation.SeparateSegmentLabelmap(self.segment_id)
            image = self._image()
        if image is not None and _has_voxels(image) and self._whole() is None:
            self.segment.AddRepresentation(LABELMAP, self._resampled(image, *self._box_of(image)))

    def _box_of(self, image: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the box of voxels (k, j, i), both corners included, that holds a labelmap on another grid."""
        import vtk

        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        ends = np.array(image.GetExtent(), float).reshape(3, 2) + (-0.5, 0.5)
        corners = np.array(np.meshgrid(*ends)).reshape(3, -1).T
        index_kji = moved(np.linalg.inv(self.grid.ijk_to_ras) @ array_of(matrix), corners)[:, ::-1]
        return np.ceil(index_kji.min(axis=0) - 0.5), np.floor(index_kji.max(axis=0) + 0.5)

    def _cover(self, low_kji: NDArray[np.int64], high_kji: NDArray[np.int64], axis: int) -> None:
        """Make sure that the labelmap covers a box, both corners included, growing ahead of the propagation."""
        import vtk

        whole = self._whole()
        last = np.array(self.grid.shape_kji) - 1
        old = None
        if whole is not None:
            values, first = whole
            old = (first, first + values.shape - 1)
            if (old[0] <= low_kji).all() and (high_kji <= old[1]).all():
                return
            # As much again along the axis: few copies, however many slices come.
            room = np.full(3, ROOM_PIXELS)
            room[axis] = max(values.shape[axis], ROOM_PIXELS)
            low = np.where(low_kji < old[0], (low_kji - room).clip(0), old[0])
            high = np.where(high_kji > old[1], np.minimum(high_kji + room, last), old[1])
        else:
            low = (low_kji - ROOM_PIXELS).clip(0)
            high = np.minimum(high_kji + ROOM_PIXELS, last)
        image = self.grid.image(_extent(low, high), vtk.VTK_UNSIGNED_CHAR)
        if old is not None:
            place = tuple(slice(int(f - a), int(e - a) + 1) for f, e, a in zip(*old, low, strict=True))
            np.equal(values, self.segment.GetLabelValue(), out=array_of_labelmap(image)[place], casting="unsafe")
        self.segment.SetLabelValue(1)
        self.segment.AddRepresentation(LABELMAP, image)


def has_labelmaps(segmentation_node: Any) -> bool:
    """Whether a segmentation consists of labelmaps, and not of surfaces or contours."""
    return bool(segmentation_node.GetSegmentation().GetSourceRepresentationName() == LABELMAP)


def check_labelmaps(segmentation_node: Any) -> None:
    """Refuse a segmentation of surfaces or contours: what is read there may be nothing, and what is written is lost.

    Raises
    ------
    InputError
        If it does not consist of labelmaps.
    """
    if not has_labelmaps(segmentation_node):
        said = _(
            "The segmentation {name} does not consist of labelmaps; make 'Binary labelmap' its source representation"
            " in the Segmentations module."
        )
        raise InputError(said.format(name=segmentation_node.GetName()))


def draw(segmentation_node: Any) -> None:
    """Let the views draw a segmentation; changed voxels alone they show only when something else moves."""
    display = segmentation_node.GetDisplayNode()
    if display is not None:
        display.Modified()


def _extent(low_kji: NDArray[Any], high_kji: NDArray[Any]) -> tuple[int, ...]:
    """Return the corners of a box, both included, as VTK wants them: (i0, i1, j0, j1, k0, k1)."""
    return tuple(int(corner[a]) for a in (2, 1, 0) for corner in (low_kji, high_kji))


def _has_voxels(image: Any) -> bool:
    return bool(image.GetNumberOfPoints()) and image.GetPointData().GetScalars() is not None


def array_of_labelmap(image: Any) -> NDArray[Any]:
    """The values of a labelmap as (k, j, i), without a copy."""
    from vtk.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
