"""What a panel tells its window, noted for tests."""

from __future__ import annotations

from typing import Any


class RecordingView:
    """Notes what it is told; its names are those of the module's widget class."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.sentences: list[str] = []
        self.progress: list[tuple[str, int, int]] = []
        self.strips: list[bytes] = []
        self.segmentation: Any = None

    def showBusy(self) -> None:  # noqa: N802
        """Nothing to be noted."""

    def showError(self, sentence: str) -> None:  # noqa: N802
        self.errors.append(sentence)

    def showStatus(self, sentence: str) -> None:  # noqa: N802
        self.sentences.append(sentence)

    def showProgress(self, title: str, done: int, total: int) -> None:  # noqa: N802
        self.progress.append((title, done, total))

    def showConfidence(self, ppm: bytes) -> None:  # noqa: N802
        self.strips.append(ppm)

    def saveEditorState(self) -> None:  # noqa: N802
        """Nothing to be noted."""

    def showSegmentation(self, segmentationNode: Any) -> None:  # noqa: N802, N803
        self.segmentation = segmentationNode

    def confidenceWidth(self) -> int:  # noqa: N802
        return 100

    def updateButtons(self) -> None:  # noqa: N802
        """Nothing to be noted."""

    def updateClasses(self) -> None:  # noqa: N802
        """Nothing to be noted."""
