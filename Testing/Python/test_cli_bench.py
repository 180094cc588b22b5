"""``sam2assist bench``: its JSON, and its refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from command_line import run, sentence_of

from SAM2AssistLib.benchmark import report
from SAM2AssistLib.benchmark.footprint import Load, Peak
from SAM2AssistLib.benchmark.scene import make_scene
from SAM2AssistLib.benchmark.timing import alternate


def test_the_json_has_ours_upstream_and_their_ratio_and_nothing_else_is_on_stdout(capfd):
    done = run(capfd, "bench", "--slices", "8", "--objects", "2", "--device", "cpu", "--quick", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["machine"]["float32_gflops"] > 0
    (encode,), (propagate,) = told["encode"], told["propagate"]
    assert encode["ratio"] == pytest.approx(encode["ours_per_s"] / encode["upstream_per_s"])
    assert propagate["ratio"] == pytest.approx(propagate["upstream_s"] / propagate["ours_s"])
    assert (propagate["slices"], propagate["objects"], propagate["model"]) == (8, 2, "mini")
    assert propagate["mean_iou"] >= 0.99
    assert propagate["found"] > 0.5  # of nothing found, equality would say nothing
    assert told["click_ms"]["p50"] <= told["click_ms"]["p95"]
    assert {"peak_mib", "startup_s"} <= set(told)


def test_memory_is_told_by_the_lengths_that_it_was_measured_on_and_both_grow_over_two(monkeypatch):
    monkeypatch.setattr(report, "peak_of", lambda who, load: Peak({"ours": 200.0, "upstream": 9.0}[who], 0.0, 8.0))
    loads = [Load("mini", "cpu", 256, False, slices, 1) for slices in (100, 300, 1000)]
    peaks = [report._peaks(load) for load in loads]
    assert [peak.get("ours") for peak in peaks] == [None, 192.0, 192.0]
    assert [peak.get("upstream") for peak in peaks] == [9.0, 9.0, None]


@pytest.mark.parametrize("objects", ["", "0", "three", "1,,2", "33"])
def test_a_list_of_objects_that_is_none_is_refused(capfd, objects):
    assert "1,4,13" in sentence_of(run(capfd, "bench", "--objects", objects))


def test_a_model_that_was_not_fetched_is_refused_with_both_ways_out(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SAM2ASSIST_CACHE", str(tmp_path))
    sentence = sentence_of(run(capfd, "bench", "--model", "sam2.1-tiny"))
    assert "models fetch" in sentence
    assert "--untrained" in sentence


@pytest.mark.parametrize("size", ["0", "-64", "100"])
def test_a_size_that_no_network_has_is_refused_and_not_replaced_by_the_models_own(capfd, size):
    done = run(capfd, "bench", "--untrained", "--quick", "--slices", "8", "--size", size)
    assert "multiple of 32" in sentence_of(done)


def test_a_scene_is_as_long_as_asked_for_and_every_object_is_on_its_slice():
    scene = make_scene(100, 128, 13)
    assert scene.volume.array.shape == (100, 128, 128)
    assert scene.masks.shape == (13, 128, 128)
    assert scene.masks.any(axis=(1, 2)).all()
    assert len(np.unique(scene.masks, axis=0)) == 13


def test_workers_take_turns_until_both_are_done():
    turns = []

    def worker(name: str, steps: int):
        for step in range(1, steps + 1):
            turns.append(name)
            yield step / steps

    ours, theirs = alternate(worker("ours", 2), worker("theirs", 4), lambda: None)
    assert turns.count("ours") == 2
    assert turns.count("theirs") == 4
    assert "theirs" in turns[1:3]
    assert all(math.isfinite(s) for s in (*ours, *theirs))
