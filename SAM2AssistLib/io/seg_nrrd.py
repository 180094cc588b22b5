"""Segmentations as `.seg.nrrd`, the format in which 3D Slicer keeps its segmentation nodes.

The keys are those of `vtkMRMLSegmentationStorageNode` (Slicer 5.12): per segment its name, color, label value, layer
and tags. Segments that do not overlap share a layer with one label value each; if one layer is not enough, the file is
four-dimensional with the layers as its first axis of kind `list`.

The file is written here and not by a library. SimpleITK cannot name a component axis `list` (it writes `vector`), and
pynrrd would be a dependency for the forty lines below, which also keep the order of fields that Slicer uses. Reading is
left to SimpleITK, because files that others wrote come in more encodings than ours.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import atomic_path, has_text_name
from SAM2AssistLib.io.itk_image import ijk_to_lps_of, read_label_image
from SAM2AssistLib.io.named_mask import NamedMask, bounding_box, check_masks
from SAM2AssistLib.io.terminology import Terminology, terminology_of_segment

if TYPE_CHECKING:
    from SAM2AssistLib.volume import CTVolume

REPRESENTATION = "Binary labelmap"

# Masks compress to about a hundredth at any level; higher levels take several times as long for a few percent.
_GZIP_LEVEL = 4

VoxelType: TypeAlias = "np.dtype[np.uint8] | np.dtype[np.uint16]"
_NRRD_TYPES: dict[VoxelType, str] = {np.dtype(np.uint8): "unsigned char", np.dtype(np.uint16): "unsigned short"}


def pack_layers(masks: Sequence[NDArray[np.bool_]]) -> tuple[list[NDArray[np.uint16]], list[tuple[int, int]]]:
    """Put masks into as few label maps as greedy packing needs: each goes to the first layer where it overlaps nothing.

    Parameters
    ----------
    masks : sequence of ndarray of bool, shape (k, j, i)

    Returns
    -------
    layers : list of ndarray of uint16, shape (k, j, i)
        Label maps, 0 where there is no segment.
    places : list of (int, int)
        For each mask the number of its layer (from 0) and its label value there (from 1).
    """
    layers: list[NDArray[np.uint16]] = []
    used: list[int] = []
    places = []
    for mask in masks:
        box = bounding_box(mask) or (slice(0), slice(0), slice(0))
        inside = mask[box]
        number = next((n for n, layer in enumerate(layers) if not layer[box][inside].any()), len(layers))
        if number == len(layers):
            layers.append(np.zeros(mask.shape, np.uint16))
            used.append(0)
        used[number] += 1
        layers[number][box][inside] = used[number]
        places.append((number, used[number]))
    return layers, places


def write_seg_nrrd(path: str | Path, masks: Sequence[NamedMask], volume: CTVolume) -> None:
    """Write segments with names, colors and terminology as Slicer does.

    Parameters
    ----------
    path : str or Path
        Where to; its ending should be `.seg.nrrd`, by which Slicer knows a segmentation.
    masks : sequence of NamedMask
        At least one, on the grid of the volume. They may overlap.
    volume : CTVolume
        Whose geometry the file gets.

    Raises
    ------
    InputError
        If there is no mask or one is not on the grid of the volume.
    OutputError
        If the file cannot be written.
    """
    if not masks:
        raise InputError(f"There is no segment to write to {path}.")
    check_masks(masks, volume.shape_kji)
    layers, places = pack_layers([named.mask for named in masks])
    largest = max(value for _, value in places)
    dtype: VoxelType = np.dtype(np.uint8) if largest < 256 else np.dtype(np.uint16)
    header = [*_geometry_fields(volume, len(layers), dtype), *_segment_fields(masks, places, volume)]
    with atomic_path(path) as part, part.open("wb") as file:
        file.write(("\n".join(header) + "\n\n").encode())
        _write_voxels(file, layers, dtype)


def read_seg_nrrd(path: str | Path) -> tuple[list[NamedMask], NDArray[np.float64]]:
    """Read the segments of a `.seg.nrrd`, with overlaps.

    Slicer crops what it writes to the segments, so the grid may be a part of the grid of the segmented volume.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    masks : list of NamedMask
        In the order of the file, masks (k, j, i).
    ijk_to_lps : ndarray, shape (4, 4)
        From voxel indices (i, j, k) of the masks to LPS mm.

    Raises
    ------
    InputError
        If the file cannot be read, or holds no segments.
    """
    path = Path(path)
    return segments_of_image(read_label_image(path), path)


def has_segments(image: sitk.Image) -> bool:
    """Whether an image that was read from a NRRD file carries the keys of a Slicer segmentation."""
    return image.HasMetaDataKey("Segment0_ID")


def segments_of_image(image: sitk.Image, path: Path) -> tuple[list[NamedMask], NDArray[np.float64]]:
    """The segments of an image that was read from a `.seg.nrrd`; see `read_seg_nrrd`."""
    voxels = sitk.GetArrayViewFromImage(image)  # (k, j, i) or (k, j, i, layer)
    layers = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[np.newaxis]
    layers = np.ascontiguousarray(layers)  # each segment is looked for in a whole layer
    masks = []
    for number in _segment_numbers(image):
        name, layer, value = _segment_of(image, number, path)
        if not 0 <= layer < len(layers):
            raise InputError(f"{path.name}, segment '{name}': there is no layer {layer} in the file, it is damaged.")
        masks.append(NamedMask(name, layers[layer] == value, _terminology_of(image, number, name)))
    if not masks:
        raise InputError(f"{path} holds no segments; give a segmentation that was saved by 3D Slicer or this program.")
    return masks, ijk_to_lps_of(image)


def _segment_numbers(image: sitk.Image) -> Iterator[int]:
    number = 0
    while image.HasMetaDataKey(f"Segment{number}_ID"):
        yield number
        number += 1


def _field(image: sitk.Image, number: int, key: str, default: str = "") -> str:
    """Value of a key of a segment; on Windows, older programs wrote the letters of its code page and not UTF-8."""
    key = f"Segment{number}_{key}"
    value: str = image.GetMetaData(key) if image.HasMetaDataKey(key) else default
    return value if has_text_name(value) else value.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def _segment_of(image: sitk.Image, number: int, path: Path) -> tuple[str, int, int]:
    """Name, layer and label value of a segment; before Slicer 4.11 each had its own layer, with the value 1."""

    name = _field(image, number, "Name") or _field(image, number, "ID", f"Segment_{number + 1}")
    layer, value = _field(image, number, "Layer", str(number)), _field(image, number, "LabelValue", "1")
    if not re.fullmatch(r"\d+", layer) or not re.fullmatch(r"\d+", value):
        raise InputError(f"{path.name}, segment '{name}': its layer or label value is no number, the file is damaged.")
    return name, int(layer), int(value)


def _terminology_of(image: sitk.Image, number: int, name: str) -> Terminology:
    """What a segment is and the color it is shown in, as Slicer's user has chosen."""
    tags, color = _field(image, number, "Tags"), _field(image, number, "Color")
    entry = next((tag.partition(":")[2] for tag in tags.split("|") if tag.startswith("TerminologyEntry:")), "")
    try:
        red, green, blue = (float(part) for part in color.split())
    except ValueError:  # none, or not three numbers
        return terminology_of_segment(name, entry, None)
    is_color = all(0 <= part <= 1 for part in (red, green, blue))
    return terminology_of_segment(name, entry, (red, green, blue) if is_color else None)


# --------------------------------------------------------------------------------------------------------- header


def _numbers(values: Sequence[float] | NDArray[np.float64], separator: str) -> str:
    """Numbers with the fewest digits that give them back exactly."""
    return separator.join(repr(float(value) + 0.0) for value in values)


def _geometry_fields(volume: CTVolume, layer_count: int, dtype: VoxelType) -> list[str]:
    """The fields of the NRRD format itself (http://teem.sourceforge.net/nrrd/format.html)."""
    is_list = layer_count > 1
    sizes = [*([layer_count] if is_list else []), *volume.shape_kji[::-1]]
    directions = [f"({_numbers(volume.ijk_to_lps[:3, axis], ',')})" for axis in range(3)]
    return [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {_NRRD_TYPES[dtype]}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join([*(['none'] if is_list else []), *directions])}",
        f"kinds: {'list ' if is_list else ''}domain domain domain",
        *(["endian: little"] if dtype.itemsize > 1 else []),
        "encoding: gzip",
        f"space origin: ({_numbers(volume.ijk_to_lps[:3, 3], ',')})",
    ]


def _segment_fields(masks: Sequence[NamedMask], places: Sequence[tuple[int, int]], volume: CTVolume) -> list[str]:
    """The keys and values of Slicer, in the order of its own files."""
    extent = " ".join(f"0 {count - 1}" for count in volume.shape_kji[::-1])
    fields = []
    for number, (named, (layer, value)) in enumerate(zip(masks, places, strict=True)):
        terminology = named.coded
        fields += [
            f"Segment{number}_Color:={_numbers(terminology.color_rgb, ' ')}",
            # Automatic: the color follows if the user picks another terminology. The name is the user's, so it stays.
            f"Segment{number}_ColorAutoGenerated:=1",
            f"Segment{number}_Extent:={extent}",
            f"Segment{number}_ID:=Segment_{number + 1}",
            f"Segment{number}_LabelValue:={value}",
            f"Segment{number}_Layer:={layer}",
            f"Segment{number}_Name:={_escaped(named.name)}",
            f"Segment{number}_NameAutoGenerated:=0",
            f"Segment{number}_Tags:=TerminologyEntry:{terminology.to_slicer_tag()}|",
        ]
    return [
        *fields,
        f"Segmentation_ContainedRepresentationNames:={REPRESENTATION}|",
        f"Segmentation_ConversionParameters:={_reference_geometry(volume, extent)}",
        f"Segmentation_MasterRepresentation:={REPRESENTATION}",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]


def _reference_geometry(volume: CTVolume, extent: str) -> str:
    """The conversion parameter by which Slicer knows the grid to go on segmenting on: IJK to RAS, then the extent."""
    matrix = _numbers(volume.ijk_to_ras.ravel(), ";")
    return f"Reference image geometry|{matrix};{extent.replace(' ', ';')};|Grid of the segmented volume&"


def _escaped(value: str) -> str:
    """A value of a key/value pair, which is one line, with the escapes of the NRRD format."""
    return value.replace("\\", "\\\\").replace("\r", " ").replace("\n", "\\n")


def _write_voxels(file: IO[bytes], layers: Sequence[NDArray[np.uint16]], dtype: VoxelType) -> None:
    """Voxels slice by slice, the layers fastest, so that no second copy of the volume is needed."""
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0) as packed:
        for k in range(layers[0].shape[0]):
            of_slice = np.stack([layer[k] for layer in layers], axis=-1)  # (j, i, layer)
            packed.write(of_slice.astype(dtype.newbyteorder("<")).tobytes())
