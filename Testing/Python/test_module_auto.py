"""A finished case is kept in the support library by one button, and the next volume is segmented like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from module_window import Window, liver, window
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "liver", "one_host", "window"]


@pytest.fixture(autouse=True)
def an_empty_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A support library of the test's own."""
    monkeypatch.setenv("SAM2ASSIST_SUPPORTS", str(tmp_path / "supports"))


def check_only(window: Window, *names: str) -> None:
    import qt

    for row in range(window.ui.classList.count):
        item = window.ui.classList.item(row)
        item.setCheckState(qt.Qt.Checked if item.text() in names else qt.Qt.Unchecked)


def finished_case(window: Window, mask: np.ndarray, name: str) -> None:
    """Segment something by hand and name it."""
    import slicer

    window.host.user.press(window.ui.positiveButton)
    window.host.user.press(window.ui.positiveButton)
    segment_id = window.segment("Segment_1")
    window.segmentation.GetSegmentation().GetSegment(segment_id).SetName(name)
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        mask.astype(np.uint8), window.segmentation, segment_id, window.volume
    )


def test_a_finished_case_is_kept_and_the_next_volume_is_segmented_like_it(window: Window, a_phantom) -> None:
    import slicer

    truth = a_phantom.labels == a_phantom.names["liver"]
    finished_case(window, truth, "my organ")
    assert "my organ" not in window.panel.class_names()
    window.ui.resultsCollapsibleButton.collapsed = False
    window.host.process_events()
    window.host.user.press(window.ui.supportButton)
    window.settle()
    assert window.ui.statusLabel.text == "CT is in the support library now, with my organ."
    assert "my organ" in window.panel.class_names()

    other = slicer.util.addVolumeFromArray(np.array(window.ct.array), window.ct.ijk_to_ras, "next patient")
    window.widget.logic.getParameterNode().volume = other
    window.widget.logic.getParameterNode().segmentation = None
    window.settle()
    check_only(window, "my organ")
    assert window.ui.autoLabel.text.startswith("Looks for my organ like in CT.")
    window.host.user.press(window.ui.autoButton)
    window.settle()
    assert window.ui.statusLabel.text == "Found my organ."
    window.volume = other
    found = window.mask("my organ")
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.3
    window.host.user.press(window.ui.undoButton)
    window.settle()
    assert not window.segment("my organ") or not window.mask("my organ").any()


def test_the_button_says_beforehand_what_it_does_and_does_nothing_without_a_class(window: Window) -> None:
    window.settle()
    known = window.panel.class_names()
    check_only(window, *known)
    assert all(name in window.ui.autoLabel.text for name in known)
    check_only(window)
    assert window.ui.autoLabel.text == "Check at least one class."
    assert not window.ui.autoButton.enabled


def test_a_case_of_the_same_name_and_one_that_slicer_has_numbered_are_kept_beside_the_first(window: Window) -> None:
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    finished_case(window, np.ones(window.ct.shape_kji, bool), "everything")
    window.volume.SetName("4: Abdomen / portal venous")
    for _ in range(2):
        window.panel.add_to_support_library()
        window.settle()
    names = [entry.name for entry in SupportLibrary().entries()]
    assert names == ["4- Abdomen - portal venous", "4- Abdomen - portal venous 2"]


def test_a_case_whose_volume_has_a_name_too_long_for_a_folder_is_kept_under_its_beginning(window: Window) -> None:
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    finished_case(window, np.ones(window.ct.shape_kji, bool), "everything")
    window.volume.SetName("é" * 300)
    for _ in range(2):
        window.panel.add_to_support_library()
        window.settle()
    assert [entry.name for entry in SupportLibrary().entries()] == ["é" * 90, "é" * 90 + " 2"]


def test_segments_of_one_name_are_one_class_of_a_case(window: Window) -> None:
    from SAM2AssistLib.mrml.nodes import add_segment
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    first, second = np.zeros((2, *window.ct.shape_kji), bool)
    first[3, 10:20, 10:20] = second[5, 10:20, 10:20] = True
    finished_case(window, first, "metastasis")
    other = add_segment(window.segmentation, "metastasis ")
    import slicer

    slicer.util.updateSegmentBinaryLabelmapFromArray(second.astype(np.uint8), window.segmentation, other, window.volume)
    window.panel.add_to_support_library()
    window.settle()
    (entry,) = SupportLibrary().entries()
    assert entry.classes == ("metastasis",)
    np.testing.assert_array_equal(SupportLibrary().case(entry.name).masks["metastasis"], first | second)


def test_a_damaged_case_hides_neither_the_adapters_classes_nor_other_cases(window: Window, tmp_path: Path) -> None:
    window.settle()
    known = window.panel.class_names()
    finished_case(window, np.ones(window.ct.shape_kji, bool), "everything")
    for _ in range(2):
        window.panel.add_to_support_library()
        window.settle()
    (tmp_path / "supports" / "CT" / "support.json").write_text("{")
    window.panel.refresh_classes()
    window.settle()
    assert window.panel.class_names() == [*known, "everything"]
    window.panel.add_to_support_library()
    window.settle()
    assert window.ui.statusLabel.text == "CT 3 is in the support library now, with everything."


def test_classes_whose_names_have_blanks_are_found_under_names_without(window: Window, a_phantom) -> None:
    from SAM2AssistLib.prompting.support import SupportCase
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    liver_mask = a_phantom.labels == a_phantom.names["liver"]
    SupportLibrary().add(SupportCase("before", window.ct, {"my organ ": liver_mask}))
    window.panel.refresh_classes()
    window.settle()
    check_only(window, "my organ")
    window.host.user.press(window.ui.autoButton)
    window.settle()
    assert window.ui.statusLabel.text == "Found my organ."
    assert window.mask("my organ").any()


def test_an_empty_segmentation_is_refused_in_a_sentence(window: Window) -> None:
    window.host.user.press(window.ui.positiveButton)
    window.panel.add_to_support_library()
    window.settle()
    assert "has no segment with voxels" in window.ui.statusLabel.text


def test_an_adapter_that_was_chosen_just_now_is_not_passed_over_by_the_one_before(
    window: Window, tmp_path: Path
) -> None:
    window.settle()
    window.widget.logic.getParameterNode().adapter = tmp_path / "another"
    window.panel.auto_segment(["liver"])
    assert window.ui.statusLabel.text == "It is not known yet what can be looked for; wait a moment."
    assert window.panel.segmentation_node is None


def test_an_adapter_that_finds_nothing_by_itself_leaves_auto_segment_to_the_embedded_one(
    window: Window, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="training adapters needs the package peft")
    from SAM2AssistLib.engine.catalogue import find_model
    from SAM2AssistLib.engine.loading import load_base
    from SAM2AssistLib.training.lora import LoraRecipe, attach_lora, base_card, save_adapter

    mini = find_model("mini")
    adapted = attach_lora(load_base(mini), LoraRecipe(rank=1, targets=("decoder",)))
    save_adapter(adapted, tmp_path / "tumours", base_card(mini))
    window.settle()
    known = window.panel.class_names()
    window.widget.logic.getParameterNode().adapter = tmp_path / "tumours"
    window.settle()
    assert window.panel.class_names() == known
    check_only(window, "liver")
    assert window.ui.autoLabel.text.startswith("Looks for liver by the adapter mini.")
