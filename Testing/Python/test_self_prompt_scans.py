"""What a self-prompt head learns from: full labels, and labels of a few classes only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ct_files import affine, write_image

from SAM2AssistLib.engine.loading import load_engine
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.training import seeded, self_prompt_scans
from SAM2AssistLib.training.self_prompt_scans import LabelledScan, seeded_scan, training_scan
from SAM2AssistLib.training.self_prompt_training import head_loss
from SAM2AssistLib.volume import CTVolume

CLASSES = ("liver", "pancreas")
# Feet first and mirrored, on a grid that is thinned to half.
GRID = affine((0.8, 0.8, 5.0), origin_lps=(120.0, -120.0, 40.0)) @ np.diag([-1.0, 1.0, -1.0, 1.0])


@pytest.fixture
def a_seeded_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bright ball in water, with seeds but without labels."""
    k, j, i = np.ogrid[:12, :300, :300]
    ball = ((k - 6) * 6) ** 2 + (j - 100) ** 2 + (i - 200) ** 2 < 30**2
    hu = np.where(ball, 160, 20) + np.random.default_rng(1).normal(0, 8, ball.shape)
    folder = tmp_path / "a case"
    folder.mkdir()
    write_image(folder / "image.nii.gz", hu.astype(np.int16), GRID)
    seeds = {
        "liver": [[5, 50, 100, 3], [7, 50, 100, 3]],
        "heart": [[6, 120, 30, 3]],
        "other": [[k, *at, 9] for k in range(12) for at in ((50, 65), (50, 135), (15, 100), (85, 100))],
    }
    for module in (seeded, self_prompt_scans):
        monkeypatch.setattr(module, "seeds_of", lambda name: seeds)
    return folder


def test_a_seeded_case_lies_where_its_image_lies_and_tells_only_of_what_was_seeded_whole(
    a_seeded_case: Path, tmp_path: Path
) -> None:
    scan = seeded_scan(a_seeded_case, tmp_path / "grown")
    assert set(scan.masks) == {"liver"}
    assert not scan.complete
    centre_ijk = np.argwhere(scan.masks["liver"]).mean(axis=0)[::-1]
    whole = CTVolume.read(a_seeded_case / "image.nii.gz")
    expected_ras = whole.ras_from_index_ijk((200.0, 100.0, 6.0))
    np.testing.assert_allclose(scan.volume.ras_from_index_ijk(centre_ijk), expected_ras, atol=1.2)
    assert (tmp_path / "grown" / "a case.nii.gz").is_file()


def test_a_case_without_seeds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no seeds for nobody; place some"):
        seeded_scan(tmp_path / "nobody", tmp_path)


def test_a_class_that_a_scan_does_not_tell_of_is_marked() -> None:
    array = np.full((4, 64, 64), 40, np.int16)
    volume = CTVolume(array, affine((4.0, 4.0, 5.0)))
    mask = np.zeros(array.shape, bool)
    mask[:, 20:40, 20:40] = True
    engine = load_engine("mini", "cpu")
    for complete, told in ((True, [True, True, True]), (False, [True, True, False])):
        scan = training_scan(engine, LabelledScan("a", volume, {"liver": mask}, complete), CLASSES)
        assert scan.told.tolist() == told


def test_whatever_is_said_of_a_class_without_truth_costs_nothing() -> None:
    truth = torch.zeros(1, 3, 4, 4)
    truth[:, 1, :, :2], truth[:, 0, :, 2:] = 1.0, 1.0
    told = torch.tensor([True, True, False])
    right = torch.where(truth > 0, 8.0, -8.0)
    moved = right[:, [2, 1, 0]]  # pancreas wherever there is no liver
    assert float(head_loss(moved, truth)) > 1
    assert float(head_loss(moved, truth, told)) == pytest.approx(float(head_loss(right, truth, told)), abs=1e-4)
    wrong = right[:, [1, 0, 2]]
    assert float(head_loss(wrong, truth, told)) > 1
    torch.testing.assert_close(head_loss(right, truth, torch.ones(3, dtype=torch.bool)), head_loss(right, truth))
