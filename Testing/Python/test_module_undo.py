"""Two undo buttons, the module's and the Segment Editor's: whichever is pressed, prompts and masks stay together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from module_window import Window, liver, window
from slicer_window import a_host, host_or_skip, one_host

host_or_skip()
__all__ = ["a_host", "liver", "one_host", "window"]


def editor_button(window: Window, name: str) -> Any:
    from slicer_host.pythonqt import unwrap

    return unwrap(window.ui.segmentEditorWidget).findChild(object, f"{name}Button")


def prompts_of(window: Window) -> int:
    return len(window.panel.workspace().prompts.gestures(window.segment("Segment_1")))


def two_clicks(window: Window, first: np.ndarray) -> list[np.ndarray]:
    """Click twice; returns the masks before, between and after."""
    masks = []
    window.host.user.press(window.ui.positiveButton)
    window.settle()
    for index in (first, first + (0, 6, -6)):
        masks.append(window.mask("Segment_1"))
        window.click(index)
        window.settle()
    return [*masks, window.mask("Segment_1")]


def test_the_segment_editors_undo_takes_clicks_back_and_the_points_follow_at_once(
    window: Window, liver: np.ndarray
) -> None:
    before, between, after = two_clicks(window, liver)
    for expected, points in ((between, 1), (before, 0)):
        window.host.user.press(editor_button(window, "Undo"))
        window.settle()
        np.testing.assert_array_equal(window.mask("Segment_1"), expected)
        assert prompts_of(window) == points
    for expected, points in ((between, 1), (after, 2)):
        window.host.user.press(editor_button(window, "Redo"))
        window.settle()
        np.testing.assert_array_equal(window.mask("Segment_1"), expected)
        assert prompts_of(window) == points


def test_both_undo_buttons_may_be_pressed_in_turn(window: Window, liver: np.ndarray) -> None:
    before, between, after = two_clicks(window, liver)
    window.host.user.press(editor_button(window, "Undo"))
    window.settle()
    window.host.user.press(window.ui.undoButton)
    window.settle()
    np.testing.assert_array_equal(window.mask("Segment_1"), before)
    assert prompts_of(window) == 0
    for expected, points in ((between, 1), (after, 2)):
        window.host.user.press(window.ui.redoButton)
        window.settle()
        np.testing.assert_array_equal(window.mask("Segment_1"), expected)
        assert prompts_of(window) == points
    assert not window.ui.redoButton.enabled


def test_a_stroke_undone_in_the_segment_editor_leaves_the_click_before_it(window: Window, liver: np.ndarray) -> None:
    _, _, after = two_clicks(window, liver)
    window.host.user.press(window.ui.positiveButton)
    editor = window.ui.segmentEditorWidget
    editor.setActiveEffectByName("Erase")
    inside = np.argwhere(after[liver[0]])
    clicks = np.array([liver[1:], liver[1:] + (6, -6)])
    far = inside[np.linalg.norm(inside[:, None] - clicks, axis=2).min(axis=1).argmax()]  # no point is dragged along
    window.host.user.drag("Red", window.ras((liver[0], *far)), window.ras((liver[0], *(far + 1))))
    editor.setActiveEffectByName("")
    window.settle()
    assert (window.mask("Segment_1") != after).any()
    window.host.user.press(editor_button(window, "Undo"))
    window.settle()
    np.testing.assert_array_equal(window.mask("Segment_1"), after)
    assert prompts_of(window) == 2
    window.host.user.press(window.ui.propagateButton)
    window.settle()
    assert [step.title for step in window.panel.workspace().journal.done][:2] == ["add point", "add point"]


def test_the_strip_shows_the_chosen_segment_and_marks_its_prompted_slices(
    window: Window, liver: np.ndarray, monkeypatch: Any
) -> None:
    shown: list[bytes] = []
    real = window.widget.showConfidence
    monkeypatch.setattr(window.widget, "showConfidence", lambda ppm: (shown.append(ppm), real(ppm)))
    two_clicks(window, liver)
    known = next(iter(window.panel.workspace().confidence.values()))
    assert known.prompted == (int(liver[0]),)

    def colors() -> set[int]:
        return set(shown[-1].split(b" 255\n", 1)[1])

    assert 255 in colors()
    window.add_segment("empty")
    window.host.process_events()
    assert colors() == {70}
    window.choose_segment("Segment_1")
    window.host.process_events()
    assert 255 in colors()
    for _ in range(2):
        window.host.user.press(window.ui.undoButton)
        window.settle()
    assert not window.panel.workspace().confidence
    assert colors() == {70}


def test_beyond_the_limit_of_the_segment_editors_copies_the_modules_own_undo_goes_on(
    window: Window, liver: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SAM2AssistLib.mrml import panel

    monkeypatch.setattr(panel, "EDITOR_STATE_BYTES", -1)
    before, between, after = two_clicks(window, liver)
    assert not editor_button(window, "Undo").isEnabled()
    for button, expected in (
        (window.ui.undoButton, between),
        (window.ui.undoButton, before),
        (window.ui.redoButton, between),
        (window.ui.redoButton, after),
    ):
        window.host.user.press(button)
        window.settle()
        np.testing.assert_array_equal(window.mask("Segment_1"), expected)
