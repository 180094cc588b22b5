"""Prompts are understood in every frame, and a wrong prompt file is refused in one sentence."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SAM2AssistLib.errors import InputError, OutputError
from SAM2AssistLib.prompts import (
    BoxPrompt,
    PointPrompt,
    SegmentPrompts,
    box_from_ras,
    point_from_ras,
    read_prompt_file,
    write_prompt_file,
)
from SAM2AssistLib.volume import CTVolume


def rotation(about_x, about_y, about_z):
    cosines, sines = np.cos([about_x, about_y, about_z]), np.sin([about_x, about_y, about_z])
    x = np.array([[1, 0, 0], [0, cosines[0], -sines[0]], [0, sines[0], cosines[0]]])
    y = np.array([[cosines[1], 0, sines[1]], [0, 1, 0], [-sines[1], 0, cosines[1]]])
    z = np.array([[cosines[2], -sines[2], 0], [sines[2], cosines[2], 0], [0, 0, 1]])
    return z @ y @ x


def volume_of(directions, spacing_ijk=(0.8, 0.9, 2.5), origin=(11.0, -22.0, 33.0), shape_kji=(20, 30, 40)):
    matrix = np.eye(4)
    matrix[:3, :3] = directions * np.array(spacing_ijk)
    matrix[:3, 3] = origin
    return CTVolume.from_array(np.zeros(shape_kji, np.int16), spacing_ijk, matrix)


AXIAL = volume_of(np.eye(3))
CORONAL_LEFT_HANDED = volume_of(np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]))
FLIPPED = volume_of(np.diag([-1.0, 1, -1]))
OBLIQUE = volume_of(rotation(0.2, -0.1, 0.3))
ALL_VOLUMES = pytest.mark.parametrize("volume", [AXIAL, CORONAL_LEFT_HANDED, FLIPPED, OBLIQUE])


@pytest.fixture
def prompt_file(tmp_path):
    def write(content):
        path = tmp_path / "prompts.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def one_segment(**segment):
    return {"frame": "IJK", "segments": [{"name": "liver", **segment}]}


A_POINT = {"position": [1, 2, 3]}


# ------------------------------------------------------------------------------------------------ what is understood


def test_a_file_in_voxel_indices_is_taken_as_it_is(prompt_file):
    path = prompt_file(
        one_segment(
            points=[{"position": [1, 2.5, 3]}, {"position": [4, 5, 6], "positive": False}],
            boxes=[{"min": [1, 2, 3], "max": [4, 5, 3]}, {"min": [1, 2, 3], "max": [4, 5, 6]}],
        )
    )
    assert read_prompt_file(path, AXIAL) == (
        SegmentPrompts(
            "liver",
            (PointPrompt((1.0, 2.5, 3.0), True), PointPrompt((4.0, 5.0, 6.0), False)),
            (BoxPrompt((1, 2, 3), (4, 5, 3), axis=0), BoxPrompt((1, 2, 3), (4, 5, 6), axis=None)),
        ),
    )


@ALL_VOLUMES
def test_the_three_frames_mean_the_same_point(prompt_file, volume):
    index = (3.25, 7.5, 11.0)
    ras = volume.ras_from_index_ijk(index)
    for frame, position in (("IJK", index), ("RAS", ras), ("LPS", ras * [-1, -1, 1])):
        content = {"frame": frame, "segments": [{"name": "a", "points": [{"position": list(position)}]}]}
        (segment,) = read_prompt_file(prompt_file(content), volume)
        np.testing.assert_allclose(segment.points[0].index_ijk, index, atol=1e-9)


def test_a_point_is_positive_unless_it_says_otherwise(prompt_file):
    (segment,) = read_prompt_file(prompt_file(one_segment(points=[A_POINT])), AXIAL)
    assert segment.points[0].positive


def test_a_box_without_points_is_enough_and_a_negative_point_may_come_with_it(prompt_file):
    box = {"min": [1, 1, 1], "max": [3, 3, 3]}
    (segment,) = read_prompt_file(prompt_file(one_segment(points=[{**A_POINT, "positive": False}], boxes=[box])), AXIAL)
    assert len(segment.boxes) == 1


def test_blanks_around_a_name_are_dropped(prompt_file):
    content = {"frame": "IJK", "segments": [{"name": "  left kidney ", "points": [A_POINT]}]}
    assert read_prompt_file(prompt_file(content), AXIAL)[0].name == "left kidney"


def test_a_byte_order_mark_does_no_harm(prompt_file):
    assert read_prompt_file(prompt_file("\ufeff" + json.dumps(one_segment(points=[A_POINT]))), AXIAL)


# ------------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize(("flat_ras", "axis"), [(2, 0), (1, 1), (0, 2)])
def test_a_box_flat_in_an_axis_of_the_patient_lies_on_the_nearest_slice(flat_ras, axis):
    low, high = AXIAL.ras_from_index_ijk([[30, 25, 5], [10, 5, 15]])
    low[flat_ras] = high[flat_ras] = (low[flat_ras] + high[flat_ras]) / 2
    box = box_from_ras(AXIAL, low, high)
    assert box.axis == axis
    expected = [[10, 5, 5], [30, 25, 15]]
    expected[0][2 - axis] = expected[1][2 - axis] = (expected[0][2 - axis] + expected[1][2 - axis]) / 2
    np.testing.assert_allclose([box.min_ijk, box.max_ijk], expected, atol=1e-9)


def test_a_flat_box_between_two_slices_lies_on_one_of_them():
    low, high = AXIAL.ras_from_index_ijk([[30, 25, 5.4], [10, 5, 5.4]])
    box = box_from_ras(AXIAL, low, high)
    assert (box.axis, box.min_ijk[2], box.max_ijk[2]) == (0, 5, 5)


def test_in_a_coronal_volume_a_box_flat_from_front_to_back_is_on_one_slice_of_the_scan():
    corners = CORONAL_LEFT_HANDED.ras_from_index_ijk([[10, 5, 7], [30, 25, 7]])
    box = box_from_ras(CORONAL_LEFT_HANDED, corners.min(axis=0), corners.max(axis=0))
    assert (box.axis, box.min_ijk[2], box.max_ijk[2]) == (0, 7, 7)


def test_in_an_oblique_volume_a_flat_box_is_the_rectangle_around_its_corners():
    center = OBLIQUE.ras_from_index_ijk([20, 15, 10])
    low, high = center - [6, 5, 0], center + [6, 5, 0]
    box = box_from_ras(OBLIQUE, low, high)
    corners = OBLIQUE.index_ijk_from_ras([[x, y, center[2]] for x in (low[0], high[0]) for y in (low[1], high[1])])
    assert (box.axis, box.min_ijk[2], box.max_ijk[2]) == (0, 10, 10)
    np.testing.assert_allclose(box.min_ijk[:2], corners.min(axis=0)[:2])
    np.testing.assert_allclose(box.max_ijk[:2], corners.max(axis=0)[:2])


@settings(max_examples=60)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    center=st.tuples(st.floats(5, 34), st.floats(5, 24), st.floats(3, 16)),
    half=st.tuples(*[st.floats(0.5, 8)] * 3),
)
def test_a_box_of_voxels_holds_every_point_of_the_box_that_is_in_the_volume(angles, center, half):
    volume = volume_of(rotation(*angles))
    middle = volume.ras_from_index_ijk(center)
    box = box_from_ras(volume, middle - half, middle + half)
    fractions = np.array(list(itertools.product((-1, -0.3, 0.4, 1), repeat=3)))
    index = volume.index_ijk_from_ras(middle + fractions * half)
    size = np.array(volume.shape_kji[::-1])
    inside = index[((index >= 0) & (index <= size - 1)).all(axis=1)]
    assert (inside >= np.array(box.min_ijk) - 1e-6).all()
    assert (inside <= np.array(box.max_ijk) + 1e-6).all()


def test_a_box_that_reaches_out_of_the_volume_is_clipped(prompt_file):
    path = prompt_file(one_segment(boxes=[{"min": [-10, 5, -3], "max": [100, 10, 8]}]))
    assert read_prompt_file(path, AXIAL)[0].boxes == (BoxPrompt((0, 5, 0), (39, 10, 8), None),)


def test_a_box_of_which_one_slice_is_left_by_clipping_is_a_box_on_that_slice(prompt_file):
    path = prompt_file(one_segment(boxes=[{"min": [3, 5, -9], "max": [30, 10, -0.2]}]))
    assert read_prompt_file(path, AXIAL)[0].boxes == (BoxPrompt((3, 5, 0), (30, 10, 0), 0),)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ([5, 1, 1], [3, 4, 4], r"min \(5\) is above its max \(3\) in i"),
        ([3, 1, 4], [3, 4, 4], "flat in i and k"),
        ([3, 1, 4], [3, 1, 4], "flat in i and j and k"),
        ([41, 1, 1], [44, 4, 4], "lies outside the volume, which spans i 0 to 39, j 0 to 29, k 0 to 19"),
        ([1, 1, 25], [4, 4, 25], "lies outside the volume"),
        ([-9, 1, 3], [-0.2, 4, 3], "less than half a voxel"),
    ],
)
def test_an_empty_box_and_a_box_elsewhere_are_refused(prompt_file, low, high, words):
    with pytest.raises(InputError, match=rf"prompts\.json, segment 'liver', box 1: the box .*{words}"):
        read_prompt_file(prompt_file(one_segment(boxes=[{"min": low, "max": high}])), AXIAL)


# ---------------------------------------------------------------------------------------------------- what is refused


def test_a_point_outside_is_refused_with_the_extent_of_the_volume_in_the_same_frame(prompt_file):
    volume = volume_of(np.eye(3), spacing_ijk=(1.0, 1.0, 2.0), origin=(0.0, 0.0, 0.0))
    points = [{"position": [-20, -10, 20]}, {"position": [500, 0, 40]}]
    content = {"frame": "RAS", "segments": [{"name": "liver", "points": points}]}
    with pytest.raises(InputError) as refused:
        read_prompt_file(prompt_file(content), volume)
    assert str(refused.value) == (
        "prompts.json, segment 'liver', point 2: the point (500, 0, 40) in RAS lies outside the volume, "
        "which spans R -39.5 to 0.5, A -29.5 to 0.5, S -1.0 to 39.0 mm."
    )


@pytest.mark.parametrize("index", [(-0.51, 5, 5), (39.5, 5, 5), (5, 5, 19.6)])
def test_a_point_beyond_the_edge_of_the_last_voxel_is_outside(index):
    with pytest.raises(InputError, match="lies outside the volume"):
        point_from_ras(AXIAL, AXIAL.ras_from_index_ijk(index))


@pytest.mark.parametrize("point", [(np.nan, 0, 0), (np.inf, 0, 0), (1, 2)])
def test_a_point_has_three_finite_numbers(point):
    with pytest.raises(InputError):
        point_from_ras(AXIAL, point)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ([], "the file has to be an object"),
        ({"segments": []}, "has no 'frame'"),
        ({"frame": "ras", "segments": []}, 'has the frame "ras"'),
        ({"frame": ["RAS"], "segments": []}, "has the frame"),
        ({"frame": "IJK"}, "'segments' has to be a list"),
        ({"frame": "IJK", "segments": {}}, "'segments' has to be a list"),
        ({"frame": "IJK", "segments": []}, "there are no segments"),
        ({"frame": "IJK", "segments": [], "Segment": 1}, "unknown key 'Segment'; use 'segments'"),
        ({"frame": "IJK", "segments": [3]}, "segment 1 has to be an object"),
        ({"frame": "IJK", "segments": [{"points": [A_POINT]}]}, "segment 1 has no name"),
        ({"frame": "IJK", "segments": [{"name": "  ", "points": [A_POINT]}]}, "segment 1 has no name"),
        ({"frame": "IJK", "segments": [{"name": 5, "points": [A_POINT]}]}, "segment 1 has no name"),
        ({"frame": "IJK", "segments": [{"name": "half \ud83d", "points": [A_POINT]}]}, "segment 1 has no name of text"),
        ({"frame": "IJK", "segments": [{"name": "a\0b", "points": [A_POINT]}]}, "segment 1 has no name of text"),
        ('{"frame": "IJK", "segments": [' + "9" * 5000 + "]}", "a number of too many digits"),
        ({"frame": "IJK", "segments": [{"name": "a", "points": [A_POINT]}] * 2}, "two segments are named 'a'"),
        ('{"frame": "IJK", "frame": "RAS", "segments": []}', "the key 'frame' comes twice"),
        (one_segment(), "'liver': it has neither points nor boxes"),
        (one_segment(points=[], boxes=[]), "'liver': it has neither points nor boxes"),
        (one_segment(points=A_POINT), "'liver': 'points' has to be a list"),
        (one_segment(points=[{**A_POINT, "positive": False}]), "'liver': all its points are negative"),
        (one_segment(points=[{"pos": [1, 2, 3]}]), "point 1 has the unknown key 'pos'; use 'position'"),
        (one_segment(points=[{"xyzzy": 1}]), "unknown key 'xyzzy'; it may have position, positive"),
        (one_segment(points=[{}]), "point 1 has no 'position'"),
        (one_segment(points=[[1, 2, 3]]), "point 1 has to be an object"),
        (one_segment(points=[{"position": [1, 2]}]), "'position' has to be three numbers"),
        (one_segment(points=[{"position": [1, 2, "3"]}]), "'position' has to be three numbers"),
        (one_segment(points=[{"position": [1, 2, True]}]), "'position' has to be three numbers"),
        (one_segment(points=[{**A_POINT, "positive": 1}]), "'positive' has to be true or false"),
        (one_segment(points=[{**A_POINT, "positive": None}]), "'positive' has to be true or false"),
        (one_segment(box=[]), "segment 1 has the unknown key 'box'; use 'boxes'"),
        (one_segment(boxes=[{"min": [1, 1, 1]}]), "box 1 has no 'max'"),
        ('{"frame": "IJK", "segments": [{"name": "a", "points": [{"position": [NaN, 1, 1]}]}]}', "NaN"),
        ('{"frame": "IJK", "segments": [{"name": "a", "points": [{"position": [-Infinity, 1, 1]}]}]}', "Infinity"),
        ('{"frame": "IJK", "segments": [{"name": "a", "points": [{"position": [1e999, 1, 1]}]}]}', "not finite"),
        (one_segment(points=[{"position": [10**400, 1, 1]}]), "not finite"),
    ],
)
def test_a_file_that_breaks_the_format_is_refused_in_one_sentence(prompt_file, content, words):
    with pytest.raises(InputError) as refused:
        read_prompt_file(prompt_file(content), AXIAL)
    message = str(refused.value)
    assert words in message
    assert "prompts.json" in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "prompts.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="UTF-8"):
        read_prompt_file(tmp_path / "prompts.json", AXIAL)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_prompt_file(path, AXIAL)


# ------------------------------------------------------------------------------------------------------ round trips

INDEX = st.tuples(st.floats(0, 39), st.floats(0, 29), st.floats(0, 19))


@st.composite
def boxes(draw):
    axis = draw(st.sampled_from([None, 0, 1, 2]))
    low = [draw(st.floats(0, size - 2)) for size in (40, 30, 20)]
    high = [start + draw(st.floats(0.1, size - 1 - start)) for start, size in zip(low, (40, 30, 20), strict=True)]
    if axis is not None:
        low[2 - axis] = high[2 - axis] = float(round(low[2 - axis]))
    return BoxPrompt(tuple(low), tuple(high), axis)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    volume=st.sampled_from([AXIAL, CORONAL_LEFT_HANDED, FLIPPED, OBLIQUE]),
    frame=st.sampled_from(["RAS", "LPS", "IJK"]),
    points=st.lists(st.tuples(INDEX, st.booleans()), max_size=3),
    given_boxes=st.lists(boxes(), min_size=1, max_size=3),
)
def test_prompts_come_back_as_they_were_written(tmp_path, volume, frame, points, given_boxes):
    given_points = tuple(PointPrompt(index, positive) for index, positive in points)
    segments = (
        SegmentPrompts("Ländler ✓", given_points, tuple(given_boxes)),
        SegmentPrompts("b", (PointPrompt((1, 1, 1)),), ()),
    )
    write_prompt_file(tmp_path / "p.json", segments, volume, frame)
    back = read_prompt_file(tmp_path / "p.json", volume)
    assert [segment.name for segment in back] == ["Ländler ✓", "b"]
    for one, other in zip(back[0].points, given_points, strict=True):
        assert one.positive == other.positive
        np.testing.assert_allclose(one.index_ijk, other.index_ijk, atol=1e-9)
    for box, other_box in zip(back[0].boxes, given_boxes, strict=True):
        assert box.axis == other_box.axis
        np.testing.assert_allclose(box.min_ijk, other_box.min_ijk, atol=1e-9)
        np.testing.assert_allclose(box.max_ijk, other_box.max_ijk, atol=1e-9)


def test_boxes_in_an_oblique_volume_are_written_in_voxel_indices(tmp_path):
    box = SegmentPrompts("a", (), (BoxPrompt((1, 2, 3), (4, 5, 3), 0),))
    point = SegmentPrompts("a", (PointPrompt((1, 2, 3)),), ())
    assert write_prompt_file(tmp_path / "p.json", [box], OBLIQUE) == "IJK"
    assert write_prompt_file(tmp_path / "p.json", [point], OBLIQUE) == "RAS"
    assert write_prompt_file(tmp_path / "p.json", [box], AXIAL) == "RAS"


def test_prompts_that_cannot_be_written_are_an_output_error(tmp_path):
    with pytest.raises(OutputError):
        write_prompt_file(tmp_path / "none" / "p.json", [], AXIAL)


def test_prompts_need_no_more_than_numpy():
    code = (
        "import sys, SAM2AssistLib.prompts\n"
        "print([m for m in ('torch', 'SimpleITK', 'scipy', 'skimage', 'PIL', 'pydicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
