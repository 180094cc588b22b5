"""Makes the pictures of the module: `python Testing/SlicerHost/screenshots.py [--ct FILE --labels FILE]`.

The module's file runs in the host (README.md beside this file) over a CT phantom, or over a CT of one's own whose
label map says where to click. What the pictures show of the module and of the views is real; the window around them is
the host's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SIZE = (1440, 1000)
AUTOMATIC = ("liver", "spleen", "kidney_right", "kidney_left")


@dataclass(frozen=True)
class Case:
    """What is photographed.

    Attributes
    ----------
    node
        The volume node.
    labels_kji
        Label map (k, j, i) that says where to click.
    names
        Label of each structure's name.
    """

    node: Any
    labels_kji: Any
    names: dict[str, int]

    def middle_of(self, name: str) -> tuple[float, float, float]:
        """Return the RAS position in mm that is deepest inside a structure, on its largest slice."""
        from scipy import ndimage

        mask = self.labels_kji == self.names[name]
        k = int(mask.sum(axis=(1, 2)).argmax())
        depth = ndimage.distance_transform_edt(mask[k])
        j, i = np.unravel_index(int(depth.argmax()), depth.shape)
        return self.ras((int(i), int(j), k))

    def corners_of(self, name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return two opposite corners (RAS, mm) of the box around a structure on its largest slice."""
        mask = self.labels_kji == self.names[name]
        k = int(mask.sum(axis=(1, 2)).argmax())
        j, i = np.nonzero(mask[k])
        return self.ras((int(i.min()), int(j.min()), k)), self.ras((int(i.max()), int(j.max()), k))

    def ras(self, index_ijk: tuple[int, int, int]) -> tuple[float, float, float]:
        """Return the RAS position in mm of a voxel (i, j, k)."""
        import vtk

        matrix = vtk.vtkMatrix4x4()
        self.node.GetIJKToRASMatrix(matrix)
        x, y, z, _ = matrix.MultiplyPoint((*index_ijk, 1))
        return x, y, z


def phantom_case() -> Case:
    """Put the phantom into the scene."""
    import slicer

    sys.path.insert(0, str(ROOT))
    from SAM2AssistLib.training.phantoms import make_phantom

    phantom = make_phantom(11, (48, 320, 320), (1.2, 1.2, 4.0))
    node = slicer.util.addVolumeFromArray(np.array(phantom.volume.array), phantom.volume.ijk_to_ras, "CT phantom")
    return Case(node, phantom.labels, dict(phantom.names))


def ct_case(ct: Path, labels: Path) -> Case:
    """Load a CT and its label map, whose names are in labels.json beside it."""
    import SimpleITK as sitk
    import slicer

    node = slicer.util.loadVolume(str(ct))
    names = json.loads((labels.parent / "labels.json").read_text(encoding="utf-8"))
    return Case(node, sitk.GetArrayFromImage(sitk.ReadImage(str(labels))), names)


def prepare(host: Any, case: Case) -> Any:
    """Open the module over the case with a soft-tissue window, as if no package were there; return its widget."""
    from unittest import mock

    import slicer

    sys.path.insert(0, str(ROOT))
    from SAM2AssistLib.mrml import first_run as packages

    case.node.CreateDefaultDisplayNodes()
    case.node.GetDisplayNode().SetAutoWindowLevel(False)
    case.node.GetDisplayNode().SetWindowLevel(400, 40)
    slicer.util.setSliceViewerLayers(background=case.node, fit=True)
    host.load_module(ROOT / "SAM2Assist" / "SAM2Assist.py")
    with mock.patch.object(packages, "_version", return_value=None):
        return host.open_module("SAM2Assist")


def settle(host: Any, widget: Any) -> None:
    """Wait until the engine has nothing to do, and everything is drawn."""
    host.user.wait_until(lambda: not widget.panel.busy(), 900.0)
    host.user.wait(0.3)


def show_everywhere(host: Any, position: tuple[float, float, float]) -> None:
    """Move all slice views to a position."""
    for view in ("Red", "Green", "Yellow"):
        host.user.show_position(view, position)


def first_run(host: Any, widget: Any, case: Case) -> None:
    """The list of what is missing, as `prepare` has opened the panel."""
    show_everywhere(host, case.middle_of("liver"))
    settle(host, widget)


def automatic(host: Any, widget: Any, case: Case) -> None:
    """What Auto-Segment finds of four classes without a prompt, and the line that says so beforehand."""
    import qt
    import slicer

    widget.updateSetup()
    settle(host, widget)
    for row in range(widget.ui.classList.count):
        item = widget.ui.classList.item(row)
        item.setCheckState(qt.Qt.Checked if item.text() in AUTOMATIC else qt.Qt.Unchecked)
    show_everywhere(host, case.middle_of("kidney_left"))
    host.user.press(widget.ui.autoButton)
    settle(host, widget)
    widget.panel.segmentation_node.CreateClosedSurfaceRepresentation()
    slicer.util.resetThreeDViews()
    settle(host, widget)


def box_on_a_slice(host: Any, widget: Any, case: Case) -> None:
    """A box around the spleen on one slice, carried through the others."""
    widget.updateSetup()
    settle(host, widget)
    draw_box(host, widget, case, "spleen")
    name_segment(widget, "spleen", (157 / 255, 108 / 255, 162 / 255))
    settle(host, widget)


def second_structure(host: Any, widget: Any, case: Case) -> None:
    """A box in three dimensions around a kidney and a point in it, beside the first segment; both in 3D."""
    import slicer

    other = next(name for name in case.names if "kidney" in name)
    segmentation = widget.panel.segmentation_node.GetSegmentation()
    segment_id = segmentation.AddEmptySegment(other, other, (185 / 255, 102 / 255, 83 / 255))
    widget.ui.segmentEditorWidget.setCurrentSegmentID(segment_id)
    draw_box(host, widget, case, other, "solidBoxButton")
    host.user.press(widget.ui.positiveButton)
    host.user.click("Red", case.middle_of(other))
    settle(host, widget)
    widget.panel.segmentation_node.CreateClosedSurfaceRepresentation()
    slicer.util.resetThreeDViews()
    settle(host, widget)


def draw_box(host: Any, widget: Any, case: Case, name: str, button: str = "boxButton") -> None:
    """Click two corners around a structure on its largest slice, and wait for what comes of it."""
    show_everywhere(host, case.middle_of(name))
    host.user.press(getattr(widget.ui, button))
    settle(host, widget)
    for corner in case.corners_of(name):
        host.user.click("Red", corner)
    settle(host, widget)


def name_segment(widget: Any, name: str, color: tuple[float, float, float]) -> None:
    """Name the segment chosen, as one does in the table of segments."""
    segment = widget.panel.segmentation_node.GetSegmentation().GetSegment(widget.panel.segment_id())
    segment.SetName(name)
    segment.SetColor(*color)


PICTURES: tuple[dict[str, Callable[[Any, Any, Case], None]], ...] = (
    {"module-first-run.png": first_run, "module-auto.png": automatic},
    {"module-box.png": box_on_a_slice, "module-3d.png": second_structure},
)
"""Each group begins with a scene of its own."""


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "Resources" / "Screenshots")
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--labels", type=Path)
    arguments = parser.parse_args()
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from slicer_host import open_host

    arguments.out.mkdir(parents=True, exist_ok=True)
    for pictures in PICTURES:
        with open_host() as host:
            host.show(*SIZE)
            case = ct_case(arguments.ct, arguments.labels) if arguments.ct is not None else phantom_case()
            widget = prepare(host, case)
            for name, arrange in pictures.items():
                arrange(host, widget, case)
                host.window.grab().save(str(arguments.out / name))
                print(arguments.out / name)
            if host.unhandled:
                raise SystemExit(f"{len(host.unhandled)} exceptions reached the console; see above")


if __name__ == "__main__":
    main()
