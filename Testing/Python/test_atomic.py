"""A file is written as a whole or not at all."""

import errno
import os
import stat
import sys
from types import SimpleNamespace

import pytest

from SAM2AssistLib.errors import Cancelled, OutputError
from SAM2AssistLib.io.atomic import atomic_path, atomic_paths, ending_of


def test_what_was_written_is_there_afterwards_and_nothing_else(tmp_path):
    with atomic_path(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_the_file_to_write_to_has_the_same_ending_and_is_in_the_same_folder(tmp_path):
    for name, ending in (("x.seg.nrrd", ".seg.nrrd"), ("x.1.nii.gz", ".nii.gz"), ("x.PNG", ".png"), ("x", "")):
        with atomic_path(tmp_path / name) as part:
            part.touch()
            assert ending_of(part) == ending
            assert part.parent == tmp_path


def test_the_final_file_does_not_exist_before_the_block_ends(tmp_path):
    with atomic_path(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("error", [ValueError("x"), Cancelled("x"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_no_other(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def write() -> None:
        with atomic_path(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def write() -> None:
        with atomic_path(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"a\.txt cannot be written \(No space left on device\)"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        TypeError(
            "With tag (7FE0,0010) got exception: [Errno 28] No space left on device\nTraceback (most recent call"
        ),
    ],
)
def test_what_a_library_says_of_a_full_disk_is_one_sentence_too(tmp_path, error):
    def write() -> None:
        with atomic_path(tmp_path / "a.txt"):
            raise error

    with pytest.raises(OutputError, match=r"a\.txt cannot be written \(No space left on device\)") as told:
        write()
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_a_writer_that_fails_without_a_reason_has_found_the_disk_full_if_it_is(tmp_path, monkeypatch, free):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=free))

    def write() -> None:
        with atomic_path(tmp_path / "a.txt"):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError if free else OutputError, match="stopped" if free else "No space left"):
        write()


def test_weights_that_a_quota_cuts_short_are_told_as_on_a_full_disk_though_the_disk_has_room(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    torch = pytest.importorskip("torch")

    def write() -> None:
        with atomic_path(tmp_path / "a.pt") as part:
            torch.save(torch.zeros(100_000), part)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"a\.pt cannot be written \(No space left on device\)"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_output_error(tmp_path):
    def write() -> None:
        with atomic_path(tmp_path / "none" / "a.txt") as part:
            part.write_text("x")

    with pytest.raises(OutputError, match="cannot be written"):
        write()


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def write() -> None:
        with atomic_path(tmp_path / "a.txt"):
            pass

    with pytest.raises(OutputError):
        write()
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_of_files_that_belong_together_none_is_replaced_if_one_cannot_be_written(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    with (
        pytest.raises(OutputError, match="a and .*b cannot be written"),
        atomic_paths(tmp_path / "a", tmp_path / "b") as (a, _),
    ):
        a.write_text("new")
    assert [(path.name, path.read_text()) for path in sorted(tmp_path.iterdir())] == [("a", "old"), ("b", "old")]
    with atomic_paths(tmp_path / "a", tmp_path / "b") as parts:
        for part in parts:
            part.write_text("new")
    assert [(path.name, path.read_text()) for path in sorted(tmp_path.iterdir())] == [("a", "new"), ("b", "new")]


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with atomic_path(tmp_path / "link.txt") as part:
        part.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_a_new_file_has_the_permissions_of_any_other_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "a.txt") as part:
        part.touch()
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
