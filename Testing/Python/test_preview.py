"""The preview shows the patient as a radiologist is used to, however the volume is stored."""

import itertools
import time

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.io.preview import draw_preview, outline_colors, write_preview
from SAM2AssistLib.io.segmentation import NamedMask
from SAM2AssistLib.volume import CTVolume, Window

# A body in air with a bone at its left and an organ at the right, in front and at the feet.
SHAPE = (12, 40, 50)
SPACING_IJK = (2.0, 2.0, 5.0)


def body():
    """HU and mask in the order of RAS: i to the right, j to anterior, k to superior."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[:, 5:35, 5:45] = 40
    hu[:, 18:22, 10:14] = 600
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 24:32, 28:42] = True
    hu[mask] = 120
    return hu, mask


def ras_volume(hu):
    ijk_to_ras = np.diag([*SPACING_IJK, 1.0])
    ijk_to_ras[:3, 3] = [-50.0, -40.0, 100.0]
    return CTVolume.from_array(hu, SPACING_IJK, np.diag([-1.0, -1, 1, 1]) @ ijk_to_ras)


def stored_otherwise(hu, mask, order, flips):
    """The same patient with the axes of the array permuted and flipped."""
    matrix = ras_volume(hu).ijk_to_lps
    step = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    # From new array indices (k, j, i) to old ones, then the same in (i, j, k).
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new_axis, old_axis in enumerate(order):
        to_old[old_axis, new_axis] = -1 if flips[new_axis] else 1
        to_old[old_axis, 3] = hu.shape[old_axis] - 1 if flips[new_axis] else 0
    reverse = np.eye(4)[[2, 1, 0, 3]]
    new_matrix = matrix @ reverse @ to_old @ reverse
    spacing = np.linalg.norm(new_matrix[:3, :3], axis=0).tolist()
    volume = CTVolume.from_array(hu.transpose(order)[step], spacing, new_matrix)
    return volume, NamedMask("liver", mask.transpose(order)[step])


def picture_without_title(volume, masks):
    """The title tells the size in the order in which the volume is stored, the rest does not depend on it."""
    return np.asarray(draw_preview(volume, masks))[85:]


def test_a_png_is_written_and_nothing_else(tmp_path):
    hu, mask = body()
    write_preview(tmp_path / "a.png", ras_volume(hu), [NamedMask("liver", mask)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.mode, picture.width) == ("PNG", "RGB", 1800)


ORIENTATIONS = [
    (order, flips)
    for number, (order, flips) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3))
    )
    if number % 5 == 3
]


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_the_picture_is_the_same_in_whatever_order_the_volume_is_stored(order, flips):
    hu, mask = body()
    expected = picture_without_title(ras_volume(hu), [NamedMask("liver", mask)])
    volume, named = stored_otherwise(hu, mask, order, flips)
    np.testing.assert_array_equal(picture_without_title(volume, [named]), expected)


def first_panel(picture):
    """The first axial slice: what follows the page's color in the row and the column of its corner."""
    pixels = np.asarray(picture).astype(int)
    page = pixels[0, 0]
    top, left = 90, 36
    width = int(np.argmax((pixels[top + 1, left:] == page).all(axis=-1)))
    height = int(np.argmax((pixels[top:, left + 1] == page).all(axis=-1)))
    return pixels[top : top + height, left : left + width]


def is_outline(pixels):
    return pixels.max(axis=-1) - pixels.min(axis=-1) > 60


def test_the_right_of_the_patient_is_at_the_left_and_anterior_is_up():
    hu, right_anterior = body()
    left_posterior = np.zeros(SHAPE, bool)
    left_posterior[1:5, 8:14, 8:16] = True
    masks = [NamedMask("liver", right_anterior), NamedMask("spleen", left_posterior)]
    panel = first_panel(draw_preview(ras_volume(hu), masks))
    liver, spleen = (
        np.argwhere(np.abs(panel - color).max(axis=-1) < 20).mean(axis=0)
        for color in outline_colors(["liver", "spleen"])
    )
    assert (liver < spleen).all()  # higher, and more to the left


def test_a_millimeter_is_as_long_across_as_along():
    hu, mask = body()
    panel = first_panel(draw_preview(ras_volume(hu), [NamedMask("liver", mask)]))
    rows, columns = np.nonzero(is_outline(panel))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(14 / 8, rel=0.05)


def test_the_inside_of_an_outline_is_not_covered():
    hu, mask = body()
    panel = first_panel(draw_preview(ras_volume(hu), [NamedMask("liver", mask)], window=Window(40, 400)))
    rows, columns = np.nonzero(is_outline(panel))
    inside = panel[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
    assert inside.tolist() == [178, 178, 178]  # 120 HU in a window from -160 to 240


@pytest.mark.parametrize("voxels", [0, 1])
def test_an_empty_segment_and_one_of_a_single_voxel_are_drawn(voxels):
    hu, _ = body()
    mask = np.zeros(SHAPE, bool)
    mask[3, 10, 20] = bool(voxels)
    picture = draw_preview(ras_volume(hu), [NamedMask("lesion", mask)])
    assert bool(is_outline(first_panel(picture)).any()) == bool(voxels)


def test_a_volume_without_segments_air_only_and_one_slice_are_drawn():
    hu, mask = body()
    draw_preview(ras_volume(hu), [])
    draw_preview(ras_volume(np.full(SHAPE, -1000, np.int16)), [NamedMask("liver", mask)])
    draw_preview(ras_volume(hu[2:3]), [NamedMask("liver", mask[2:3])])
    draw_preview(ras_volume(hu[:, :1, :1]), [NamedMask("liver", mask[:, :1, :1])])


def test_many_segments_with_long_and_foreign_names_are_drawn():
    hu, mask = body()
    masks = [NamedMask(f"a very long name of a segment that does not fit 左 {n}\n", mask) for n in range(60)]
    assert draw_preview(ras_volume(hu), masks).height < 3000


def test_organs_that_are_alike_in_slicer_get_different_colors_here():
    names = ["liver", "stomach", "kidney_left", "aorta", "pancreas", "colon", "spleen", "inferior_vena_cava"]
    colors = rgb2lab(np.array(outline_colors(names)) / 255)
    distances = np.linalg.norm(colors[:, None] - colors, axis=-1)
    assert distances[~np.eye(len(names), dtype=bool)].min() > 20
    assert (colors[:, 0] > 50).all()


def test_left_and_right_can_be_told_apart_and_the_same_names_get_the_same_colors():
    names = ["kidney_left", "lung_left", "kidney_right", "lung_right"]
    colors = outline_colors(names)
    lab = rgb2lab(np.array(colors) / 255)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    assert distances[~np.eye(len(names), dtype=bool)].min() > 20
    assert outline_colors(names) == colors


def test_a_picture_of_a_clinical_ct_is_drawn_in_little_time(tmp_path):
    hu = np.full((60, 512, 512), -1000, np.int16)
    hu[:, 100:400, 60:450] = np.random.default_rng(1).normal(40, 15, (60, 300, 390))
    masks = []
    for n in range(8):
        mask = np.zeros(hu.shape, bool)
        mask[10:50, 120 + 30 * n : 180 + 30 * n, 100 + 30 * n : 200 + 30 * n] = True
        masks.append(NamedMask(f"organ {n}", mask))
    volume = CTVolume.from_array(hu, (0.8, 0.8, 2.5), np.diag([0.8, 0.8, 2.5, 1.0]))
    began = time.process_time()
    write_preview(tmp_path / "a.png", volume, masks)
    assert time.process_time() - began < 1.5


def test_a_mask_of_another_grid_and_a_folder_that_is_missing_are_refused(tmp_path):
    hu, mask = body()
    with pytest.raises(InputError, match="mask of 'liver'"):
        write_preview(tmp_path / "a.png", ras_volume(hu), [NamedMask("liver", mask[1:])])
    with pytest.raises(OutputError, match="cannot be written"):
        write_preview(tmp_path / "none" / "a.png", ras_volume(hu), [NamedMask("liver", mask)])
    assert list(tmp_path.iterdir()) == []
