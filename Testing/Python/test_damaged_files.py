"""Files that are damaged, cut short, named in no text or not what they are taken for are refused, and none is lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import affine

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import read_segmentation, write_segmentation
from SAM2AssistLib.volume import CTVolume

SHAPE_KJI, SPACING_IJK = (8, 40, 40), (1.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    noise = np.random.default_rng(0).normal(0, 60, SHAPE_KJI)
    return CTVolume.from_array(noise.astype(np.int16), SPACING_IJK, affine(SPACING_IJK))


def a_mask(seed: int = 0) -> NamedMask:
    return NamedMask("liver", np.random.default_rng(seed).random(SHAPE_KJI) < 0.5)


def written(path: Path, array: np.ndarray) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


# Without compression there is no checksum.
DAMAGES = [(".nii", cut), *((ending, damage) for ending in (".nii.gz", ".nrrd", ".mha") for damage in (cut, flipped))]


@pytest.mark.parametrize(("ending", "damage"), DAMAGES)
def test_a_damaged_label_map_is_refused_and_not_read_in_part(tmp_path, ending, damage, capfd):
    path = written(tmp_path / f"labels{ending}", a_mask().mask.astype(np.uint8))
    assert read_segmentation(path)[0][0].mask.any()
    damage(path)
    with pytest.raises(InputError, match=rf"labels\{ending} is (damaged or )?truncated"):
        read_segmentation(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("ending", "damage"), DAMAGES)
def test_a_damaged_ct_is_refused(tmp_path, volume, ending, damage):
    path = written(tmp_path / f"ct{ending}", volume.array)
    damage(path)
    with pytest.raises(InputError, match=r"is (damaged or )?truncated"):
        CTVolume.read(path)


def test_a_compressed_metaimage_that_does_not_tell_its_size_is_refused(tmp_path, volume):
    path = written(tmp_path / "ct.mha", volume.array)
    lines = path.read_bytes().split(b"\n", 20)
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"CompressedDataSize")))
    with pytest.raises(InputError, match="does not tell its CompressedDataSize"):
        CTVolume.read(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_result_that_was_not_written_whole_leaves_the_old_one(tmp_path, volume, ending, monkeypatch):
    path = tmp_path / f"result{ending}"
    write_segmentation(path, [a_mask(1)], volume)
    before, write = path.read_bytes(), sitk.WriteImage

    def on_a_full_disk(image, name, *arguments, **options):
        write(image, name, *arguments, **options)
        cut(Path(name))

    monkeypatch.setattr(sitk, "WriteImage", on_a_full_disk)
    with pytest.raises(OutputError, match="check the ending and the free space"):
        write_segmentation(path, [a_mask(2)], volume)
    assert path.read_bytes() == before


def test_a_ct_is_no_segmentation(tmp_path, volume):
    path = written(tmp_path / "ct.nii.gz", volume.array)
    with pytest.raises(InputError, match="so it is an image and no label map"):
        read_segmentation(path)


@pytest.mark.skipif(os.name == "nt", reason="paths are text there")
def test_a_path_that_is_no_text_is_refused_for_reading_and_writing(tmp_path, volume):
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    folder.mkdir()
    for name in ("ct.nii.gz", "ct.mha"):
        whole = written(tmp_path / name, volume.array)
        (folder / name).write_bytes(whole.read_bytes())
        for read in (CTVolume.read, read_segmentation):
            with pytest.raises(InputError, match="is no text in UTF-8; rename"):
                read(folder / name)
    for name in ("out.nii.gz", "out.seg.nrrd"):
        with pytest.raises(OutputError, match="is no text in UTF-8; choose another"):
            write_segmentation(folder / name, [a_mask()], volume)
        assert not (folder / name).exists()
