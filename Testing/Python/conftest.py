"""Fixtures that the tests of the engine share, named after what they are."""

from __future__ import annotations

import hypothesis
import pytest

SLICES = 10

# How long an example takes tells of the machine, not of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config):
    """Have the tests of DICOM searched for their patient."""
    from dicom_privacy import PrivacyGuard

    config.pluginmanager.register(PrivacyGuard(), "dicom privacy")


@pytest.fixture(scope="session")
def a_phantom():
    """A small phantom of an abdomen."""
    from SAM2AssistLib.training.phantoms import make_phantom

    return make_phantom(7, (8, 96, 96), (3.0, 3.0, 5.0))


@pytest.fixture(scope="session")
def an_engine():
    """The embedded model, as a user has it."""
    from SAM2AssistLib.engine.loading import load_engine

    return load_engine("mini", device="cpu")


@pytest.fixture(scope="session")
def a_bare_engine():
    """The embedded model, its masks as the network draws them."""
    from SAM2AssistLib.engine.loading import load_engine
    from SAM2AssistLib.engine.options import EngineOptions

    return load_engine("mini", device="cpu", options=EngineOptions(sharpens=False))


@pytest.fixture
def a_session(an_engine, a_phantom):
    """A session of the embedded model on the phantom."""
    with an_engine.open(a_phantom.volume) as session:
        yield session


@pytest.fixture(scope="session")
def a_quick_model():
    """A tiny SAM2 with fixed random weights that finds something on every slice.

    What the session does with masks must not depend on how good they are.
    """
    import torch

    from SAM2AssistLib.engine.architecture import build_sam2

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_sam2("mini", 64, max_cond_frames_in_attn=8)
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias += 30.0
    return model


@pytest.fixture(scope="session")
def quick_engine(a_quick_model):
    """Make an engine of the quick model; keyword arguments are engine options.

    Its weights are random, so that its masks have nothing to settle on: what is looked at is how they travel.
    """
    from SAM2AssistLib.engine.catalogue import find_model
    from SAM2AssistLib.engine.loading import engine_for
    from SAM2AssistLib.engine.options import EngineOptions

    def make(**options):
        return engine_for(
            a_quick_model, find_model("mini"), EngineOptions(**{"stop_rules": False, "sharpens": False, **options})
        )

    return make


@pytest.fixture
def engine(quick_engine, monkeypatch):
    """The engine that a command gets: the quick one."""
    from SAM2AssistLib.engine import loading

    made = quick_engine()
    monkeypatch.setattr(loading, "load_engine", lambda *_, **__: made)
    return made


@pytest.fixture(scope="session")
def a_blob_volume():
    """Ten slices with two bright balls."""
    from blobs import two_blobs

    return two_blobs((SLICES, 64, 64)).volume


@pytest.fixture
def a_quick_session(quick_engine, a_blob_volume):
    """A session of the quick model on the two balls."""
    with quick_engine().open(a_blob_volume) as session:
        yield session


@pytest.fixture
def a_segment(a_quick_session):
    """A segment of the quick session, without prompts."""
    return a_quick_session.add_segment("ball")
