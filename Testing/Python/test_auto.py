"""Auto-Segment: classes found without a prompt, as segments that can be corrected and taken back."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from auto_scenes import BALLS, KNOWN, a_learned_head, a_prompter, balls, edit_card

from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.loading import default_window
from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.overlap import dice
from SAM2AssistLib.prompting.auto import AutoOptions, auto_segment
from SAM2AssistLib.prompting.pseudo_masks import SupportOptions
from SAM2AssistLib.prompting.self_prompt import embedded_adapter, load_finder, load_self_prompter
from SAM2AssistLib.prompting.support import SupportCase, prepare_support, read_support
from SAM2AssistLib.training.self_prompt_training import HeadSettings, write_adapter
from SAM2AssistLib.volume import CTVolume

BY_MAPS = AutoOptions(map_weight=1.0)
"""The quick model's own masks mean nothing; with this, what the maps say counts."""
BY_CELLS = AutoOptions(map_weight=1.0, support=SupportOptions(prior_weight=1.0))


@pytest.fixture(scope="module")
def a_head(quick_engine):
    return a_learned_head(quick_engine())


@pytest.fixture
def a_prompter_of_balls(quick_engine, a_head):
    return a_prompter(quick_engine(), a_head)


def run(session, **settings):
    return list(auto_segment(session, **settings))


def test_what_is_there_is_found_and_what_is_not_is_declared_absent(a_quick_session, a_prompter_of_balls):
    last = run(a_quick_session, adapter=a_prompter_of_balls, options=BY_MAPS)[-1]
    assert last.stage == "done"
    verdicts = {v.name: v for v in last.verdicts}
    assert set(verdicts) == set(KNOWN)
    _, masks = balls()
    for name in BALLS:
        assert verdicts[name].present
        assert dice(a_quick_session.mask(verdicts[name].segment), masks[name]) > 0.7
    assert not verdicts["cube"].present
    assert verdicts["cube"].segment is None
    assert {s.name for s in a_quick_session.segments} == set(BALLS)


def test_what_is_smaller_than_an_organ_can_be_is_declared_absent(a_quick_session, a_prompter_of_balls):
    volume, masks = balls()
    largest_ml = max(masks[name].sum() for name in BALLS) * np.prod(volume.spacing_ijk) / 1000
    strict = replace(a_prompter_of_balls, least_ml=2 * largest_ml)
    last = run(a_quick_session, adapter=strict, options=BY_MAPS)[-1]
    assert not any(verdict.present or verdict.segment for verdict in last.verdicts)
    assert not a_quick_session.segments


def test_a_mirrored_volume_gives_the_mirrored_result(quick_engine, a_prompter_of_balls):
    volume, masks = balls()
    matrix = volume.ijk_to_lps.copy()
    matrix[:3, 3] = volume.lps_from_index_ijk([volume.shape_kji[2] - 1, volume.shape_kji[1] - 1, 0])
    matrix[:, :2] *= -1
    mirrored = CTVolume.from_array(volume.array[:, ::-1, ::-1], volume.spacing_ijk, matrix)
    with quick_engine().open(mirrored) as session:
        verdicts = run(session, adapter=a_prompter_of_balls, options=BY_MAPS)[-1].verdicts
        for verdict in verdicts[:2]:
            assert dice(session.mask(verdict.segment), masks[verdict.name][:, ::-1, ::-1]) > 0.7


@pytest.mark.parametrize("corrections", [0, 4])
def test_no_voxel_belongs_to_two_classes(a_quick_session, a_prompter_of_balls, corrections):
    run(a_quick_session, adapter=a_prompter_of_balls, corrections=corrections)
    total = sum(a_quick_session.mask(s).astype(int) for s in a_quick_session.segments)
    assert np.max(total, initial=0) <= 1


def test_one_undo_takes_all_of_it_back_and_one_redo_brings_it_again(a_quick_session, a_prompter_of_balls):
    own = a_quick_session.add_segment("my own")
    run(a_quick_session, adapter=a_prompter_of_balls, options=BY_MAPS)
    after = {s.name: a_quick_session.mask(s) for s in a_quick_session.segments}
    assert a_quick_session.undo() == "Auto-Segment"
    assert a_quick_session.segments == (own,)
    assert a_quick_session.redo() == "Auto-Segment"
    assert {s.name for s in a_quick_session.segments} == after.keys()
    for segment in a_quick_session.segments:
        np.testing.assert_array_equal(a_quick_session.mask(segment), after[segment.name])


def test_its_prompts_are_listed_and_each_can_be_removed(a_quick_session, a_prompter_of_balls):
    run(a_quick_session, adapter=a_prompter_of_balls, classes=[BALLS[0]], options=BY_MAPS)
    (segment,) = a_quick_session.segments
    prompts = a_quick_session.prompts(segment)
    assert any(p.is_box for p in prompts)
    a_quick_session.remove_prompt(segment, prompts[0])
    assert prompts[0] not in a_quick_session.prompts(segment)


def test_it_can_be_ended_between_slices_and_is_one_step_of_undo_even_then(a_quick_session, a_prompter_of_balls):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 6

    last = run(a_quick_session, adapter=a_prompter_of_balls, stop=stop)[-1]
    assert last.cancelled
    assert len(a_quick_session.history._done) == 0 or a_quick_session.undo() == "Auto-Segment"
    assert a_quick_session.segments == ()


def test_leaving_it_half_way_leaves_one_step_of_undo(a_quick_session, a_prompter_of_balls):
    steps = auto_segment(a_quick_session, adapter=a_prompter_of_balls)
    for step in steps:
        if step.stage == "propagation":
            break
    steps.close()
    assert a_quick_session.undo() == "Auto-Segment"
    assert a_quick_session.segments == ()


def test_one_undo_leaves_the_propagation_that_was_going_on_before(a_quick_session, a_prompter_of_balls):
    own = a_quick_session.add_segment("my own")
    a_quick_session.add_mask(own, 5, np.pad(np.ones((20, 20), bool), 22))
    steps = a_quick_session.propagate()
    for _ in range(4):
        next(steps)
    run(a_quick_session, adapter=a_prompter_of_balls)
    after = a_quick_session.mask(own)
    assert after.any(axis=(1, 2)).sum() > 1
    assert a_quick_session.undo() == "Auto-Segment"
    np.testing.assert_array_equal(a_quick_session.mask(own), after)
    assert a_quick_session.undo() == "propagate"


def test_progress_grows_within_a_stage(a_quick_session, a_prompter_of_balls):
    steps = run(a_quick_session, adapter=a_prompter_of_balls)
    for before, after in zip(steps, steps[1:], strict=False):
        assert after.stage != before.stage or after.done > before.done


def test_a_class_that_nobody_knows_is_refused_and_changes_nothing(a_quick_session, a_prompter_of_balls):
    with pytest.raises(InputError, match="knows the class 'heart'"):
        run(a_quick_session, adapter=a_prompter_of_balls, classes=["heart"])
    assert a_quick_session.segments == ()


def test_a_name_that_is_taken_is_refused_before_any_work(a_quick_session, a_prompter_of_balls):
    a_quick_session.add_segment(BALLS[1])
    with pytest.raises(InputError, match="'right ball' already"):
        run(a_quick_session, adapter=a_prompter_of_balls)
    assert len(a_quick_session.segments) == 1


# Support cases


def test_a_volume_like_its_support_case_is_segmented_like_it(a_quick_session):
    case = SupportCase("balls", *balls())
    verdicts = run(a_quick_session, support=[case], options=BY_CELLS)[-1].verdicts
    assert [v.present for v in verdicts] == [True, True]
    for verdict in verdicts:
        assert dice(a_quick_session.mask(verdict.segment), case.masks[verdict.name]) > 0.6


def test_support_gives_the_same_result_each_time(quick_engine, a_blob_volume):
    masks = []
    for _ in range(2):
        with quick_engine().open(a_blob_volume) as session:
            run(session, support=[SupportCase("balls", *balls())], options=BY_CELLS)
            masks.append([session.mask(s) for s in session.segments])
    for one, other in zip(*masks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_class_that_only_one_support_case_shows_is_found_by_that_one(a_quick_session):
    volume, masks = balls()
    cases = [SupportCase("one", volume, {n: masks[n]}) for n in BALLS]
    verdicts = run(a_quick_session, support=cases, options=BY_CELLS)[-1].verdicts
    assert {v.name for v in verdicts if v.present} == set(BALLS)


BY_PLAIN_CELLS = replace(BY_CELLS, support=replace(BY_CELLS.support, with_adapter=False))


def test_a_support_case_that_another_network_has_encoded_counts_as_one_that_none_has(quick_engine, a_blob_volume):
    engine, case = quick_engine(), SupportCase("balls", *balls())
    other = replace(engine, model=copy.deepcopy(engine.model))
    with torch.no_grad():
        for parameter in other.model.image_encoder.parameters():
            parameter.mul_(-1)
    masks = []
    for support in (case, prepare_support(other, case, default_window(case.volume))):
        with engine.open(a_blob_volume) as session:
            run(session, support=[support], options=BY_PLAIN_CELLS)
            masks.append({segment.name: session.mask(segment) for segment in session.segments})
    assert masks[0].keys() == masks[1].keys() == set(BALLS)
    for name in BALLS:
        np.testing.assert_array_equal(masks[0][name], masks[1][name])


def test_a_volume_without_any_of_the_classes_gets_no_segment(quick_engine):
    volume, _ = balls()
    empty = replace(volume, array=np.where(volume.array > 100, np.int16(20), volume.array))
    with quick_engine().open(empty) as session:
        verdicts = run(session, support=[SupportCase("balls", *balls())])[-1].verdicts
        assert [v.present for v in verdicts] == [False, False]
        assert session.segments == ()


def test_a_support_mask_of_another_shape_is_refused():
    volume, masks = balls()
    with pytest.raises(InputError, match="has the shape"):
        SupportCase("balls", volume, {"ball": masks[BALLS[0]][:-1]})


def test_empty_support_masks_are_refused():
    volume, masks = balls()
    with pytest.raises(InputError, match="all empty"):
        SupportCase("balls", volume, {"ball": np.zeros_like(masks[BALLS[0]])})


def test_a_support_file_of_another_shape_is_refused(tmp_path):
    import SimpleITK as sitk

    from SAM2AssistLib.io.itk_image import image_of

    volume, masks = balls()
    sitk.WriteImage(image_of(volume.array, volume.ijk_to_lps), str(tmp_path / "image.nrrd"))
    label = masks[BALLS[0]][:5].astype(np.uint8)
    sitk.WriteImage(image_of(label, volume.ijk_to_lps), str(tmp_path / "mask.nrrd"))
    with pytest.raises(InputError, match="has the shape"):
        read_support(tmp_path / "image.nrrd", tmp_path / "mask.nrrd")


# Adapters


@pytest.fixture(scope="module")
def an_adapter(tmp_path_factory, quick_engine, a_head):
    folder = tmp_path_factory.mktemp("adapter")
    settings = HeadSettings(KNOWN, BALLS, dict.fromkeys(BALLS, 0.5))
    write_adapter(find_model("mini"), a_head, settings, folder, {})
    return folder


def test_a_head_that_was_written_is_loaded_as_it_was(an_engine, an_adapter, a_head):
    prompter = load_self_prompter(an_engine, an_adapter)
    assert prompter.known == KNOWN
    assert prompter.classes == BALLS
    for name, tensor in prompter.head.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), a_head.state_dict()[name].numpy(), atol=1e-3, rtol=1e-3)


def test_a_head_on_the_frozen_base_needs_no_second_network(an_engine, an_adapter):
    assert load_self_prompter(an_engine, an_adapter).engine is an_engine


def test_a_head_with_low_rank_updates_reads_a_network_that_has_them(an_engine, an_adapter, tmp_path):
    folder = copy_of(an_adapter, tmp_path)
    card = json.loads((folder / "card.json").read_text())
    edit_card(folder, self_prompt={**card["self_prompt"], "frozen_base": False})
    prompter = load_self_prompter(an_engine, folder)
    assert prompter.engine is not an_engine
    assert prompter.engine.adapter == folder
    # These updates are zero, so the network is the same.
    own = an_engine.model.state_dict()
    for name, tensor in prompter.engine.model.state_dict().items():
        if name in own:
            np.testing.assert_allclose(tensor.numpy(), own[name].numpy(), atol=1e-6)


def test_a_folder_that_is_no_adapter_is_refused(an_engine, tmp_path):
    with pytest.raises(ModelError, match="is no adapter"):
        load_self_prompter(an_engine, tmp_path)


def test_an_adapter_without_a_head_is_refused(an_engine, an_adapter, tmp_path):
    folder = copy_of(an_adapter, tmp_path)
    (folder / "self_prompt.safetensors").unlink()
    with pytest.raises(ModelError, match="no self-prompt head"):
        load_self_prompter(an_engine, folder)


def test_an_adapter_without_a_head_goes_with_support_cases_if_the_engine_has_it(
    quick_engine, an_adapter, a_blob_volume, tmp_path
):
    folder = copy_of(an_adapter, tmp_path)
    (folder / "self_prompt.safetensors").unlink()
    case = SupportCase("balls", *balls())
    with replace(quick_engine(), adapter=folder).open(a_blob_volume) as session:
        verdicts = run(session, adapter=folder, support=[case], options=BY_PLAIN_CELLS)[-1].verdicts
        assert [v.present for v in verdicts] == [True, True]
    # An engine without it would leave it out, and nobody would know.
    with quick_engine().open(a_blob_volume) as session, pytest.raises(ModelError, match="no self-prompt head"):
        run(session, adapter=folder, support=[case], options=BY_PLAIN_CELLS)


def test_what_an_adapter_without_a_head_is_at_work_in_the_embedded_head_finds(an_engine, an_adapter, tmp_path):
    folder = copy_of(an_adapter, tmp_path)
    (folder / "self_prompt.safetensors").unlink()
    embedded = load_self_prompter(an_engine, embedded_adapter("mini"))
    for engine, adapter in ((an_engine, None), (replace(an_engine, adapter=folder), folder)):
        assert load_finder(engine, adapter).classes == embedded.classes
    # An engine without it would leave it out, and nobody would know.
    with pytest.raises(ModelError, match="no self-prompt head"):
        load_finder(an_engine, folder)


def test_an_adapter_for_another_base_is_refused(an_engine, an_adapter, tmp_path):
    folder = copy_of(an_adapter, tmp_path)
    edit_card(folder, base_model="sam2.1-tiny")
    with pytest.raises(ModelError, match=r"sam2\.1-tiny"):
        load_self_prompter(an_engine, folder)


def test_an_adapter_for_other_weights_of_the_base_is_refused(an_engine, an_adapter, tmp_path):
    folder = copy_of(an_adapter, tmp_path)
    edit_card(folder, base_sha256="0" * 64)
    with pytest.raises(ModelError, match="other weights"):
        load_self_prompter(an_engine, folder)


def test_a_damaged_head_is_refused(an_engine, an_adapter, tmp_path):
    folder = copy_of(an_adapter, tmp_path)
    (folder / "self_prompt.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ModelError, match="damaged"):
        load_self_prompter(an_engine, folder)


def copy_of(adapter, tmp_path):
    import shutil

    return shutil.copytree(adapter, tmp_path / "adapter")
