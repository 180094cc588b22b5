"""A user's hands: clicks in views at positions in the patient, keys, buttons; and a clock on the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import vtk
from PySide6 import QtCore, QtGui, QtTest, QtWidgets

from .pythonqt import Wrapper, unwrap
from .views import qMRMLSliceView


class User:
    """Acts on a host's widgets by Qt events only."""

    def __init__(self, host: Any) -> None:
        self._host = host

    # Views

    def view(self, name: str) -> qMRMLSliceView:
        """Return a slice view by name ("Red", "Green", "Yellow")."""
        return self._host.application.layoutManager().sliceWidget(name).sliceView()

    def show_position(self, view: str, ras: tuple[float, float, float]) -> None:
        """Move the slice of a view to a position."""
        self.view(view).mrmlSliceNode().JumpSliceByOffsetting(*ras)
        self._host.process_events()

    def zoom(self, view: str, factor: float) -> None:
        """Let a view show more (a factor above 1) or less around its middle."""
        node = self.view(view).mrmlSliceNode()
        width, height, depth = node.GetFieldOfView()
        node.SetFieldOfView(factor * width, factor * height, depth)
        self._host.process_events()

    def pixel_of(self, view: str, ras: tuple[float, float, float]) -> QtCore.QPoint:
        """Return where a position is in a view, in the widget's pixels.

        Raises
        ------
        AssertionError
            If the view does not show it, so that no mouse can get there.
        """
        widget = self.view(view)
        x, y, _ = widget.convertRASToXYZ(list(ras))
        pixel = QtCore.QPoint(round(x), widget.height() - 1 - round(y))
        if not widget.rect().contains(pixel):
            raise AssertionError(f"The position {ras} is outside of what the view {view} shows")
        return pixel

    def move(self, view: str, ras: tuple[float, float, float]) -> None:
        """Move the mouse to a position."""
        QtTest.QTest.mouseMove(self.view(view), self.pixel_of(view, ras))
        self._host.process_events()

    def click(
        self,
        view: str,
        ras: tuple[float, float, float],
        button: QtCore.Qt.MouseButton = QtCore.Qt.MouseButton.LeftButton,
        modifiers: QtCore.Qt.KeyboardModifier = QtCore.Qt.KeyboardModifier.NoModifier,
    ) -> None:
        """Move the mouse to a position in the patient (RAS, mm) and click there."""
        self.move(view, ras)
        QtTest.QTest.mouseClick(self.view(view), button, modifiers, self.pixel_of(view, ras))
        self._host.process_events()

    def double_click(self, view: str, ras: tuple[float, float, float]) -> None:
        """Click twice at a position, quickly: press, release, double click, release, as Qt tells it."""
        self.click(view, ras)
        widget, pixel = self.view(view), self.pixel_of(view, ras)
        for kind, held in (
            (QtCore.QEvent.Type.MouseButtonDblClick, QtCore.Qt.MouseButton.LeftButton),
            (QtCore.QEvent.Type.MouseButtonRelease, QtCore.Qt.MouseButton.NoButton),
        ):
            event = QtGui.QMouseEvent(
                kind,
                QtCore.QPointF(pixel),
                QtCore.QPointF(widget.mapToGlobal(pixel)),
                QtCore.Qt.MouseButton.LeftButton,
                held,
                QtCore.Qt.KeyboardModifier.NoModifier,
            )
            QtWidgets.QApplication.sendEvent(widget, event)
        self._host.process_events()

    def drag(self, view: str, *positions_ras: tuple[float, float, float]) -> None:
        """Press at the first position, move through the others and let go at the last."""
        widget, left = self.view(view), QtCore.Qt.MouseButton.LeftButton
        # From beside, as a hand does: what is under the mouse becomes active when the mouse comes to it.
        QtTest.QTest.mouseMove(widget, self.pixel_of(view, positions_ras[0]) + QtCore.QPoint(3, 3))
        QtWidgets.QApplication.processEvents()
        self.move(view, positions_ras[0])
        QtTest.QTest.mousePress(widget, left, pos=self.pixel_of(view, positions_ras[0]))
        for position in positions_ras[1:]:
            event = _move_event(widget, self.pixel_of(view, position), left)
            QtWidgets.QApplication.sendEvent(widget, event)
            QtWidgets.QApplication.processEvents()
        QtTest.QTest.mouseRelease(widget, left, pos=self.pixel_of(view, positions_ras[-1]))
        self._host.process_events()

    def wheel(self, view: str, steps: int) -> None:
        """Turn the wheel in the middle of a view; away from oneself is positive."""
        widget = self.view(view)
        middle = widget.rect().center()
        for _ in range(abs(steps)):
            QtWidgets.QApplication.sendEvent(widget, _wheel_event(widget, middle, 120 if steps > 0 else -120))
        self._host.process_events()

    # Panel

    def press(self, button: Any) -> None:
        """Click a button (a wrapper or a Qt widget)."""
        widget = _plain(button)
        if not widget.isVisible() or not widget.isEnabled():
            raise AssertionError(f"The button {widget.objectName()!r} cannot be clicked: it is hidden or disabled")
        QtTest.QTest.mouseClick(widget, QtCore.Qt.MouseButton.LeftButton, pos=_sensitive_spot(widget))
        self._host.process_events()

    def key(self, key: QtCore.Qt.Key | str, target: Any = None, modifiers: Any = None) -> None:
        """Press a key, or type one letter, in a widget or else in the window."""
        widget = self._host.window if target is None else _plain(target)
        pressed = modifiers if modifiers is not None else QtCore.Qt.KeyboardModifier.NoModifier
        QtTest.QTest.keyClick(widget, key, pressed)
        self._host.process_events()

    # Time

    def wait_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Let the event loop run until something is so.

        Raises
        ------
        AssertionError
            If it is not so in time.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"It was not so within {seconds} s: {getattr(condition, '__name__', condition)}")
            self._rest()

    def wait(self, seconds: float) -> None:
        """Let the event loop run for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._rest()

    def _rest(self) -> None:
        # QTest's own waiting sleeps with Python's lock in its hand, so that the engine's thread would hardly get on.
        self._host.process_events()
        time.sleep(0.002)

    @contextmanager
    def heartbeat(self, interval_ms: int = 5) -> Iterator[Heartbeat]:
        """Measure the longest time in which the event loop did nothing else; see :class:`Heartbeat`."""
        beat = Heartbeat(interval_ms)
        try:
            yield beat
        finally:
            beat.stop()


@dataclass
class Heartbeat:
    """A timer that beats often: what is missing between two beats is how long the event loop was blocked.

    Attributes
    ----------
    longest_ms
        The longest pause between two beats, less the interval.
    longest_cpu_ms
        The most that the thread of the event loop worked itself between two beats: without the time in which it
        waited for the processor or for another thread.
    beats
        How often it beat; few beats are a measurement of nothing.
    """

    interval_ms: int
    longest_ms: float = 0.0
    longest_cpu_ms: float = 0.0
    beats: int = 0
    pauses_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last, self._last_cpu = time.perf_counter(), time.thread_time()
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._beat)
        self._timer.start(self.interval_ms)

    def _beat(self) -> None:
        self._count()
        self.beats += 1

    def _count(self) -> None:
        now, cpu = time.perf_counter(), time.thread_time()
        pause = max(0.0, 1000 * (now - self._last) - self.interval_ms)
        self.longest_cpu_ms = max(self.longest_cpu_ms, 1000 * (cpu - self._last_cpu))
        self._last, self._last_cpu = now, cpu
        self.pauses_ms.append(pause)
        self.longest_ms = max(self.longest_ms, pause)

    def stop(self) -> None:
        """Beat no more; the time since the last beat counts too."""
        self._timer.stop()
        self._count()


class Latency:
    """The time from a Qt event to a change of a VTK object.

    Attributes
    ----------
    first_ms
        What a clock says.
    first_cpu_ms
        What the process worked meanwhile, all threads together: the time on a machine with nothing else to do.
    """

    def __init__(self, observed: Any, event: int | str = vtk.vtkCommand.ModifiedEvent) -> None:
        self._observed = observed
        self._tag = observed.AddObserver(event, self._changed)
        self._start, self._start_cpu = time.perf_counter(), time.process_time()
        self.first_ms: float | None = None
        self.first_cpu_ms: float | None = None

    def start(self) -> None:
        """Begin to count, just before the event."""
        self.first_ms = self.first_cpu_ms = None
        self._start, self._start_cpu = time.perf_counter(), time.process_time()

    def _changed(self, *_: Any) -> None:
        if self.first_ms is None:
            self.first_ms = 1000 * (time.perf_counter() - self._start)
            self.first_cpu_ms = 1000 * (time.process_time() - self._start_cpu)

    def stop(self) -> None:
        """Observe no more."""
        self._observed.RemoveObserver(self._tag)


def _plain(widget: Any) -> QtWidgets.QWidget:
    return unwrap(widget) if isinstance(widget, Wrapper) else widget


def _sensitive_spot(widget: QtWidgets.QWidget) -> QtCore.QPoint:
    """Return where a click is heard: a check box hears clicks on its box and text only, not on all its width."""
    if isinstance(widget, QtWidgets.QCheckBox | QtWidgets.QRadioButton):
        return QtCore.QPoint(8, widget.height() // 2)
    return widget.rect().center()


def _wheel_event(widget: QtWidgets.QWidget, position: QtCore.QPoint, angle: int) -> QtGui.QWheelEvent:
    return QtGui.QWheelEvent(
        QtCore.QPointF(position),
        QtCore.QPointF(widget.mapToGlobal(position)),
        QtCore.QPoint(),
        QtCore.QPoint(0, angle),
        QtCore.Qt.MouseButton.NoButton,
        QtCore.Qt.KeyboardModifier.NoModifier,
        QtCore.Qt.ScrollPhase.NoScrollPhase,
        False,
    )


def _move_event(widget: QtWidgets.QWidget, position: QtCore.QPoint, button: QtCore.Qt.MouseButton) -> Any:
    return QtGui.QMouseEvent(
        QtCore.QEvent.Type.MouseMove,
        QtCore.QPointF(position),
        QtCore.QPointF(widget.mapToGlobal(position)),
        QtCore.Qt.MouseButton.NoButton,
        button,
        QtCore.Qt.KeyboardModifier.NoModifier,
    )
