"""Clips, synthetic masses and labelled volumes: what the network is shown in training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from training_scenes import AIR, HU_PER_LABEL, a_case, an_l_and_a_block

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training import clips as clips_module
from SAM2AssistLib.training.clips import Clip, ClipSampler
from SAM2AssistLib.training.masses import paste_masses
from SAM2AssistLib.training.volumes import LabelledVolume, read_case, read_split, tissue_labels

SIZE = 64


class HounsfieldSampler(ClipSampler):
    """Leaves windows, blur and noise out, so that an image's value tells which object it shows."""

    def _appearance(self, hu):
        return hu[:, None].expand(-1, 3, -1, -1)


@pytest.fixture
def no_masses(monkeypatch):
    monkeypatch.setattr(clips_module, "paste_masses", lambda hu, rng, share: (hu, []))


def a_sampler(*volumes, kind=ClipSampler, weights=None, slices=4, objects=2, seed=5):
    return kind(volumes, weights or [1] * len(volumes), image_size=SIZE, slices=slices, objects=objects, seed=seed)


def some_clips(*volumes, count=40, **settings) -> list[Clip]:
    sampler = a_sampler(*volumes, **settings)
    return [sampler.sample() for _ in range(count)]


def sections_of(clip: Clip):
    """Yield (HU, mask) of every slice and object as arrays."""
    for image, masks in zip(clip.images, clip.masks, strict=True):
        for mask in masks:
            yield image[0].numpy(), mask.numpy()


# ---- what a clip holds


def test_a_clip_has_the_shape_that_was_asked_for():
    clip = a_sampler(an_l_and_a_block(), slices=5, objects=3).sample()
    assert clip.images.shape == (5, 3, SIZE, SIZE)
    assert clip.images.dtype == torch.float32
    assert clip.masks.shape == (5, 3, SIZE, SIZE)
    assert clip.masks.dtype == torch.bool


def test_every_object_is_present_in_the_prompted_slice():
    for clip in some_clips(an_l_and_a_block(), objects=3):
        assert clip.masks[0].flatten(1).any(1).all()


def test_the_image_stands_out_where_the_mask_is_whatever_window_and_noise_it_gets(no_masses):
    correlations = []
    for clip in some_clips(an_l_and_a_block(), objects=1):
        wide, mask = clip.images[0, 2], clip.masks[0, 0]
        correlations.append(np.corrcoef(wide.flatten(), mask.flatten())[0, 1])
    # The other object of the volume lowers it; a few clips are shown inverted.
    assert np.median(np.abs(correlations)) > 0.85
    assert np.mean(np.array(correlations) > 0.3) > 0.8


def test_mask_and_image_stay_aligned_through_axes_turns_mirrors_and_zooms(no_masses):
    seen = set()
    for clip in some_clips(an_l_and_a_block(), kind=HounsfieldSampler, count=60):
        for hu, mask in sections_of(clip):
            inside = ndimage.binary_erosion(mask, iterations=3)
            if not inside.any():
                continue
            values = np.unique(hu[inside].round())
            assert len(values) == 1
            seen.add(int(values[0]))
            if values[0] == 2 * HU_PER_LABEL:  # the value of label 1 is also met halfway from label 2 to air
                assert not ((hu > values[0] - 1) & ~ndimage.binary_dilation(mask, iterations=2)).any()
    assert seen == {HU_PER_LABEL, 2 * HU_PER_LABEL}


@pytest.mark.parametrize("spacing_kji", [(1.0, 1.0, 3.0), (3.0, 1.0, 1.0), (1.0, 3.0, 1.0)])
def test_what_is_round_in_millimetres_is_round_in_the_view(no_masses, spacing_kji):
    extent, radius = 150, 40
    axes = [np.arange(int(extent / s)) * s - extent / 2 for s in spacing_kji]
    k, j, i = np.meshgrid(*axes, indexing="ij", sparse=True)
    ball = (k**2 + j**2 + i**2 < radius**2).astype(np.uint8)
    volume = LabelledVolume("ball", ball.astype(np.int16), ball, spacing_kji)
    lengths = []
    for clip in some_clips(volume, count=24, objects=1):
        mask = clip.masks[0, 0].numpy()
        if mask.sum() > 100 and not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
            short, long = np.sqrt(np.linalg.eigvalsh(np.cov(np.nonzero(mask))))
            lengths.append(long / short)
    assert len(lengths) > 8
    assert np.median(lengths) < 1.25  # views are stretched a little on purpose


def test_what_lies_beyond_the_volume_is_air(no_masses):
    labels = np.zeros((8, 40, 40), np.uint8)
    labels[:, 10:30, 10:30] = 1
    solid = LabelledVolume("solid", np.full(labels.shape, 300, np.int16), labels, (3.0, 2.0, 2.0))
    lowest = [float(clip.images.min()) for clip in some_clips(solid, kind=HounsfieldSampler)]
    assert min(lowest) == AIR
    assert all(AIR <= value <= 300 for value in lowest)
    corner_air = [clip for clip in some_clips(solid, kind=HounsfieldSampler) if float(clip.images.min()) == AIR]
    for clip in corner_air:
        assert not (clip.masks.any(1) & (clip.images[:, 0] < -999)).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_clips_are_cut_along_every_axis(no_masses, axis):
    labels = np.ones((40, 40, 40), np.uint8)
    steps = (np.arange(40, dtype=np.int16) * 20).reshape([-1 if a == axis else 1 for a in range(3)])
    ramp = LabelledVolume("ramp", np.broadcast_to(steps, labels.shape).copy(), labels, (2.0, 2.0, 2.0))
    clips = some_clips(ramp, kind=HounsfieldSampler, objects=1)
    inner = [ndimage.binary_erosion(clip.masks[0, 0].numpy(), iterations=3) for clip in clips]
    # Cut along the ramp's own axis, a slice has one value throughout.
    flat = [np.ptp(clip.images[0, 0].numpy()[inside]) < 1 for clip, inside in zip(clips, inner, strict=True)]
    assert 0.03 < np.mean(flat) < 0.97
    assert (np.mean(flat) > 0.5) == (axis == 0)


def test_a_small_object_is_shown_close_up_as_well_as_in_the_whole_slice(no_masses):
    labels = np.zeros((20, 120, 120), np.uint8)
    labels[:, 50:58, 70:78] = 1
    volume = LabelledVolume("small", np.zeros(labels.shape, np.int16), labels, (3.0, 2.0, 2.0))
    sides = [float(clip.masks[0, 0].sum()) ** 0.5 / SIZE for clip in some_clips(volume, count=60, objects=1)]
    assert min(sides) < 0.1
    assert max(sides) > 0.2


def test_objects_repeat_where_a_slice_shows_too_few(no_masses):
    volume = an_l_and_a_block()
    alone = LabelledVolume("alone", volume.hu, (volume.labels == 1).astype(np.uint8), volume.spacing_kji)
    clip = a_sampler(alone, objects=3).sample()
    assert torch.equal(clip.masks[:, 0], clip.masks[:, 1])
    assert torch.equal(clip.masks[:, 0], clip.masks[:, 2])


def test_clips_hold_synthetic_masses_beside_the_labelled_objects():
    volume = an_l_and_a_block()
    body = LabelledVolume("body", np.full(volume.hu.shape, 40, np.int16), volume.labels, volume.spacing_kji)
    different = [clip for clip in some_clips(body, objects=3) if float(clip.images[0].std()) > 0.3]
    assert different


def test_the_same_seed_cuts_the_same_clips():
    one, two = (some_clips(an_l_and_a_block(), count=6, seed=3) for _ in range(2))
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.masks, second.masks)


def test_another_seed_cuts_other_clips():
    one, two = (a_sampler(an_l_and_a_block(), seed=seed).sample() for seed in (3, 4))
    assert not torch.equal(one.images, two.images)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_volume_of_few_slices_gives_full_clips(count):
    labels = np.zeros((count, 64, 64), np.uint8)
    labels[:, 20:40, 20:50] = 1
    thin = LabelledVolume("thin", np.where(labels, 100, 0).astype(np.int16), labels, (5.0, 1.0, 1.0))
    for clip in some_clips(thin, count=8, slices=6):
        assert clip.images.shape[0] == 6
        assert clip.masks[0].flatten(1).any(1).all()


def test_a_volume_smaller_than_the_smallest_view_is_shown_as_it_is():
    labels = np.zeros((6, 20, 20), np.uint8)
    labels[:, 5:15, 5:15] = 1
    clip = a_sampler(LabelledVolume("stamp", labels.astype(np.int16), labels, (1.0, 1.0, 1.0))).sample()
    assert clip.masks[0].flatten(1).any(1).all()


def test_a_volume_of_no_weight_is_never_drawn(no_masses):
    volume = an_l_and_a_block()
    brighter = LabelledVolume("brighter", volume.hu + np.int16(1500), volume.labels, volume.spacing_kji)
    for clip in some_clips(volume, brighter, weights=[1, 0], kind=HounsfieldSampler, count=20):
        assert float(clip.images.max()) < 2 * HU_PER_LABEL + 1


def test_volumes_without_a_single_label_are_refused_instead_of_searched_for_ever():
    empty = LabelledVolume("empty", np.zeros((4, 40, 40), np.int16), np.zeros((4, 40, 40), np.uint8), (3.0, 2.0, 2.0))
    with pytest.raises(InputError, match="label"):
        a_sampler(empty)


def test_the_slices_that_hold_an_object_are_known_for_every_axis():
    labels = np.zeros((10, 20, 20), np.uint8)
    labels[3:7, 5:15, 8:12] = 4
    labels[0, 0, :5] = 9
    volume = LabelledVolume("block", np.zeros(labels.shape, np.int16), labels, (1.0, 1.0, 1.0))
    assert volume.labels_along(0) == [4]  # label 9 has five voxels and cannot be prompted
    assert [list(volume.present[axis, 4][[0, -1]]) for axis in range(3)] == [[3, 6], [5, 14], [8, 11]]


# ---- synthetic masses


def some_masses(hu: torch.Tensor, count: int = 40, share: float = 1.0):
    for seed in range(count):
        pasted, masks = paste_masses(hu, np.random.default_rng(seed), share=share)
        yield pasted - hu, masks


def test_a_mass_changes_the_image_where_its_mask_is_and_nowhere_far_from_it():
    agreement = []
    for change, masks in some_masses(torch.full((4, SIZE, SIZE), 40.0)):
        if not masks:
            assert not change.any()
            continue
        union = torch.stack(masks).any(0).numpy()
        far = ~ndimage.binary_dilation(union, iterations=30, structure=ndimage.generate_binary_structure(3, 3))
        assert float(change.abs().numpy()[far].max(initial=0.0)) < 5
        agreement.append(change.abs().numpy()[union].mean() / max(1e-6, change.abs().numpy()[~union].mean()))
    assert len(agreement) > 20
    assert np.median(agreement) > 5


def test_the_edge_of_a_mass_is_where_its_mask_ends():
    correlations = []
    for change, masks in some_masses(torch.full((4, SIZE, SIZE), 40.0)):
        if len(masks) == 1 and 100 < masks[0].sum() < masks[0].numel() / 2:
            correlations.append(np.corrcoef(change.abs().flatten(), masks[0].flatten())[0, 1])
    assert np.median(correlations) > 0.8


def test_masses_are_pasted_into_the_given_share_of_the_clips():
    given = [bool(masks) for _, masks in some_masses(torch.zeros(3, 32, 32), count=200, share=0.4)]
    assert 0.25 < np.mean(given) < 0.5
    untouched = [not change.any() and not masks for change, masks in some_masses(torch.zeros(3, 32, 32), 5, share=0.0)]
    assert all(untouched)


def test_masses_seldom_float_in_air():
    tissue = sum(len(masks) for _, masks in some_masses(torch.full((3, 32, 32), 40.0)))
    air = sum(len(masks) for _, masks in some_masses(torch.full((3, 32, 32), float(AIR))))
    assert air < tissue / 2


# ---- volumes from files


def a_body(shape=(12, 60, 60)) -> np.ndarray:
    hu = np.full(shape, AIR, np.int16)
    hu[:, 8:52, 8:52] = 40
    hu[:, 16:28, 18:30] = -850  # a lung
    hu[:, 36:46, 30:38] = 600  # a bone
    hu[5, 40, 14] = 900  # a speck
    return hu


def test_thresholds_find_bone_and_lung_but_neither_the_air_around_the_body_nor_specks():
    labels = tissue_labels(a_body())
    assert labels[6, 40, 34] == 1
    assert labels[6, 22, 24] == 2
    assert not labels[:, :6].any()
    assert labels[5, 40, 14] == 0
    assert set(np.unique(labels)) == {0, 1, 2}


def test_a_volume_of_water_has_no_tissue_labels():
    assert not tissue_labels(np.zeros((4, 30, 30), np.int16)).any()


def test_a_case_is_read_with_its_labels_and_spacing(tmp_path):
    volume = an_l_and_a_block()
    case = read_case(a_case(tmp_path, "one", volume.hu, volume.labels, (2.0, 2.5, 3.0)))
    assert case.name == "one"
    assert np.array_equal(case.hu, volume.hu)
    assert np.array_equal(case.labels, volume.labels)
    assert case.spacing_kji == pytest.approx((3.0, 2.5, 2.0))


def test_a_case_without_labels_gets_those_that_thresholds_tell(tmp_path):
    case = read_case(a_case(tmp_path, "one", a_body()))
    assert set(np.unique(case.labels)) == {0, 1, 2}


def test_a_case_without_an_image_is_refused_by_name(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"nothing.*image\.nii\.gz"):
        read_case(tmp_path / "nothing")


@pytest.mark.parametrize("longest", [60, 40, 20, 15])
def test_a_fine_grid_is_thinned_by_whole_steps_and_keeps_its_extent_and_its_objects(tmp_path, longest):
    labels = np.zeros((3, 60, 60), np.uint8)
    labels[:, 12:36, 24:48] = 1
    folder = a_case(tmp_path, "fine", np.where(labels, 400, 0).astype(np.int16), labels, (1.0, 1.0, 3.0))
    case = read_case(folder, longest=longest)
    step = -(-60 // longest)
    assert case.hu.shape == (3, 60 // step, 60 // step)
    assert case.spacing_kji == pytest.approx((3.0, step, step))
    # The object's edges lie on multiples of each step, so it must be kept exactly.
    assert np.array_equal(case.hu == 400, case.labels == 1)
    assert case.labels.sum() * step**2 == labels.sum()


def a_split(root, **parts):
    (root / "splits.json").write_text(json.dumps(parts))
    return root


def test_a_split_gives_the_cases_of_the_parts_that_are_asked_for(tmp_path):
    volume = an_l_and_a_block()
    for name in ("a", "b", "c"):
        a_case(tmp_path, name, volume.hu, volume.labels)
    root = a_split(tmp_path, train=["a"], unlabelled=["b"], test=["c"])
    assert [case.name for case in read_split(root)] == ["a", "b"]
    assert [case.name for case in read_split(root, ["train"])] == ["a"]


def test_the_test_part_is_never_read_for_training(tmp_path):
    root = a_split(tmp_path, train=[], unlabelled=[], test=["c"])
    with pytest.raises(InputError, match="test"):
        read_split(root, ["train", "test"])


def test_a_data_folder_without_a_split_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"splits\.json"):
        read_split(tmp_path)


def test_a_part_that_the_split_does_not_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="unlabelled"):
        read_split(a_split(tmp_path, train=[]))
