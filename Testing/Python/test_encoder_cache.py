"""Slices are encoded once, and their features kept within a budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import click, draw_box, run, two_blobs

from SAM2AssistLib.engine.appearance import THREE_WINDOWS
from SAM2AssistLib.engine.encoder import SliceEncoder
from SAM2AssistLib.engine.views import View, whole_slice
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume

WHOLE = whole_slice((64, 64), (1.5, 1.5))
CROP = View(10, 10, 40, 40)


@pytest.fixture
def an_encoder(a_quick_model, a_blob_volume):
    def make(budget_bytes: int = 1 << 30, volume: CTVolume = a_blob_volume, batch: int = 4, axis: int = 0):
        return SliceEncoder(
            a_quick_model, volume, axis, WINDOW_PRESETS["abdomen"], THREE_WINDOWS,
            budget_bytes=budget_bytes, batch=batch, exact=True,
        )  # fmt: skip

    return make


def test_a_slice_is_encoded_once_for_repeated_clicks(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    encoder = a_quick_session._plane(0).encoder
    views = {key for key in encoder._cache if key[0] == 5}
    for column in (22, 24, 26):
        click(a_quick_session, a_segment, (5, 32, column))
    views |= {key for key in encoder._cache if key[0] == 5}
    assert encoder.encoded == len(views) == len(encoder._cache)


def test_other_segments_and_later_propagations_use_the_same_features(quick_engine, a_blob_volume):
    with quick_engine(focus=False).open(a_blob_volume) as session:
        for name in ("one", "two", "three"):
            click(session, session.add_segment(name), (5, 32, 20))
        run(session)
        click(session, session.segments[0], (7, 32, 20))
        run(session)
        session.undo()
        assert session._plane(0).encoder.encoded == 10


def test_each_axis_has_features_of_its_own_and_closing_frees_them(a_quick_session, a_segment):
    click(a_quick_session, a_segment, (5, 32, 20))
    draw_box(a_quick_session, a_quick_session.add_segment("other"), (2, 20, 20), (8, 44, 20))
    assert set(a_quick_session._planes) == {0, 2}
    a_quick_session.close()
    assert not a_quick_session._planes


def test_on_a_cpu_that_has_bfloat16_features_are_rounded_a_little_unless_they_have_to_be_exact(
    quick_engine, a_blob_volume, monkeypatch
):
    def plain(exact: bool, has_bfloat16: bool) -> torch.Tensor:
        monkeypatch.setattr("SAM2AssistLib.engine.products.computes_in_bfloat16", lambda device: has_bfloat16)
        with quick_engine(exact=exact).open(a_blob_volume) as session:
            return session._plane(0).network.features_of([(5, WHOLE)])[0].plain

    exact = plain(exact=False, has_bfloat16=False)
    assert torch.equal(plain(exact=True, has_bfloat16=True), exact)
    rounded = plain(exact=False, has_bfloat16=True)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.02


def test_features_come_back_in_the_order_asked_for_also_where_keys_repeat(an_encoder):
    encoder = an_encoder()
    keys = [(3, WHOLE), (1, WHOLE), (3, CROP), (3, WHOLE), (2, WHOLE), (1, WHOLE), (0, WHOLE)]
    found = encoder.features(keys)
    assert encoder.encoded == 5
    for key, features in zip(keys, found, strict=True):
        assert features is encoder._cache[key]
    assert found[0] is found[3]


def test_a_batch_gives_what_single_slices_give(an_encoder):
    together = an_encoder(batch=4).features([(k, WHOLE) for k in range(5)])
    one_by_one = [an_encoder(batch=1).features([(k, WHOLE)])[0] for k in range(5)]
    for one, other in zip(together, one_by_one, strict=True):
        assert torch.allclose(one.plain, other.plain, atol=1e-4)
        assert torch.allclose(one.fine, other.fine, atol=1e-4)


def test_the_cache_evicts_the_least_recently_used_and_never_exceeds_its_budget(an_encoder):
    size = an_encoder().features([(0, WHOLE)])[0].size_bytes
    encoder = an_encoder(int(3.5 * size))
    for k in (0, 1, 2, 0, 3, 4):
        encoder.features([(k, WHOLE)])
        assert encoder.bytes_held <= encoder.budget_bytes
        assert encoder.bytes_held == sum(features.size_bytes for features in encoder._cache.values())
    assert [k for k in range(10) if encoder.holds(k, WHOLE)] == [0, 3, 4]
    assert encoder.encoded == 5
    encoder.features([(1, WHOLE)])
    assert encoder.encoded == 6


def test_one_request_may_be_larger_than_the_budget(an_encoder):
    size = an_encoder().features([(0, WHOLE)])[0].size_bytes
    encoder = an_encoder(2 * size)
    assert len(encoder.features([(k, WHOLE) for k in range(9)])) == 9
    assert encoder.bytes_held == 2 * size


def test_a_propagation_with_hardly_any_cache_gives_the_same_masks(quick_engine, a_blob_volume):
    masks = []
    for cache_bytes in (1, 1 << 30):
        # One at a time, for rounding depends on what is encoded together.
        with quick_engine(cache_bytes=cache_bytes, encode_batch=1).open(a_blob_volume) as session:
            segment = session.add_segment("ball")
            click(session, segment, (5, 32, 20))
            run(session)
            masks.append(session.mask(segment))
            assert len(session._plane(0).encoder._cache) == 1 or cache_bytes > 1
    assert np.array_equal(*masks)


def test_evicted_features_are_not_kept_alive_by_those_of_the_same_batch(an_encoder):
    features = an_encoder().features([(k, WHOLE) for k in range(4)])
    for part in (features[0].fine, features[0].middle, features[0].plain):
        assert part.untyped_storage().nbytes() == part.nbytes


def test_beyond_the_slice_there_is_air_in_a_ct_and_the_darkest_value_in_other_images(an_encoder):
    ct = two_blobs((4, 64, 64)).volume
    other = CTVolume.from_array(ct.array.clip(20, None), ct.spacing_ijk, ct.ijk_to_lps)
    assert an_encoder(volume=ct)._fill == -1000
    assert an_encoder(volume=other)._fill == 20


def test_a_propagation_encodes_the_next_slices_with_the_one_it_needs_and_each_once(quick_engine, a_blob_volume):
    with quick_engine(focus=False, encode_batch=3).open(a_blob_volume) as session:
        click(session, session.add_segment("one"), (0, 32, 20))
        encoder = session._plane(0).encoder
        before = encoder.encoded
        next(iter(session.propagate()))
        assert encoder.encoded == before + 3
        run(session)
        assert encoder.encoded == len(encoder._cache) == len(a_blob_volume.array)


def test_no_slice_is_encoded_ahead_that_the_cache_could_not_keep(quick_engine, a_blob_volume):
    with quick_engine(focus=False, encode_batch=4, cache_slices=1).open(a_blob_volume) as session:
        click(session, session.add_segment("one"), (0, 32, 20))
        run(session)
        encoder = session._plane(0).encoder
        assert encoder.room == 4  # a batch goes through whatever the cache holds
        assert encoder.encoded <= 2 * len(a_blob_volume.array)


def test_the_budget_is_that_of_all_volumes_and_the_one_left_longest_ago_makes_room(an_encoder):
    size = an_encoder().features([(0, WHOLE)])[0].size_bytes
    first, second, third = (an_encoder(budget_bytes=4 * size) for _ in range(3))
    first.features([(0, WHOLE), (1, WHOLE)])
    second.features([(0, WHOLE), (1, WHOLE)])
    first.features([(1, WHOLE)])
    third.features([(0, WHOLE)])
    assert [len(e._cache) for e in (first, second, third)] == [2, 1, 1]
    third.features([(k, WHOLE) for k in range(1, 4)])
    assert [len(e._cache) for e in (first, second, third)] == [0, 0, 4]
    assert first.bytes_held == second.bytes_held == 0
    first.features([(0, WHOLE)])  # and comes back to its own
    assert [len(e._cache) for e in (first, second, third)] == [1, 0, 3]


def test_a_volume_that_was_closed_takes_no_share(an_encoder):
    size = an_encoder().features([(0, WHOLE)])[0].size_bytes
    closed, kept = an_encoder(budget_bytes=2 * size), an_encoder(budget_bytes=2 * size)
    closed.features([(0, WHOLE), (1, WHOLE)])
    closed.forget()
    kept.features([(0, WHOLE), (1, WHOLE)])
    assert len(kept._cache) == 2


def test_freed_memory_goes_back_to_the_system_now_and_then(an_encoder, monkeypatch):
    trims = []
    monkeypatch.setattr("SAM2AssistLib.engine.encoder.give_freed_memory_back", lambda: trims.append(1))
    monkeypatch.setattr("SAM2AssistLib.engine.encoder.EVICTIONS_BETWEEN_TRIMS", 2)
    encoder = an_encoder(budget_bytes=1)
    for index in range(6):
        encoder.features([(index, WHOLE)])
    assert encoder.evicted == 5
    assert len(trims) == 2
