"""A pytest plugin that searches all that the tests of DICOM say and leave for their patient.

Searched are the logs at every level, stdout and stderr, warnings, error sentences with the exceptions that they were
raised from (which a traceback would show), names of files, and the content of all files that are not DICOM. A test that
says too much fails; files are searched when all tests are done, and fail the run. In none of it may the patient's name,
number or date of birth be, nor a UID.
"""

from __future__ import annotations

import gzip
import logging
import re
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ct_files import BIRTH_DATE, PATIENT_ID, PATIENT_NAME
from dicom_server import STORAGE_FOLDER
from pydicom.uid import PYDICOM_ROOT_UID

from SAM2AssistLib.errors import SAM2AssistError
from SAM2AssistLib.io.dicom_series import is_dicom_file

WATCHED = ("test_dicom_", "test_cli_export")
"""How the names of the files begin whose tests are watched."""

# The given name is an English word, which others may use.
_SECRETS = {
    "the name": PATIENT_NAME.split("^", maxsplit=1)[0],
    "the number": PATIENT_ID,
    "the date of birth": BIRTH_DATE,
    "the date of birth ": f"{BIRTH_DATE[:4]}-{BIRTH_DATE[4:6]}-{BIRTH_DATE[6:]}",
    "a UID": PYDICOM_ROOT_UID,
}
_REPORT = "dicom privacy"
_PATTERNS = {what: re.compile(re.escape(secret).encode(), re.IGNORECASE) for what, secret in _SECRETS.items()}


def secrets_in(content: str | bytes) -> list[str]:
    """What of the patient is in a text or in the bytes of a file."""
    searched = content.encode(errors="replace") if isinstance(content, str) else content
    return [what.strip() for what, pattern in _PATTERNS.items() if pattern.search(searched)]


def said_by(error: BaseException | None) -> Iterator[str]:
    """The messages that a traceback of an exception shows, from the last to the first."""
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class PrivacyGuard(logging.Handler):
    """Listens while a watched test runs, and looks through what it has left."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[tuple[str, str]] = []  # kind and text, of the test that runs
        self.errors: list[BaseException] = []
        self.is_watching = False
        self.searched: Counter[str] = Counter()
        self.folders: set[Path] = set()
        self.leaks: list[str] = []
        self.base: Path | None = None
        self._listen()

    # ----------------------------------------------------------------------------------------------------- listening

    def _listen(self) -> None:
        guard, read = self, pytest.CaptureFixture.readouterr
        made = SAM2AssistError.__init__

        def noting_output(fixture: pytest.CaptureFixture[Any]) -> Any:
            result = read(fixture)
            for part in result:
                guard.note("output", part if isinstance(part, str) else part.decode(errors="replace"))
            return result

        def noting_error(error: SAM2AssistError, *arguments: object) -> None:
            made(error, *arguments)
            if guard.is_watching:
                guard.errors.append(error)

        pytest.CaptureFixture.readouterr = noting_output  # type: ignore[method-assign]
        SAM2AssistError.__init__ = noting_error  # type: ignore[method-assign]

    def note(self, kind: str, text: str) -> None:
        """Keep what was said until the test ends."""
        if self.is_watching and text:
            self.said.append((kind, text))

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log record with its traceback."""
        self.note("log record", logging.Formatter().format(record))

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        """Look at a warning that a test let through; it is told of when the test has ended."""
        file, _, test = nodeid.partition("::")
        if Path(file).name.startswith(WATCHED):
            self.searched["warning"] += 1
            self.leaks += [f"{test}: warning with {what}" for what in secrets_in(str(warning_message.message))]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Learn where tests write."""
        value = yield
        if fixturedef.argname == "tmp_path_factory":
            self.base = value.getbasetemp()
        return value

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Listen at every level while a watched test runs."""
        if not item.path.name.startswith(WATCHED):
            return (yield)
        root, before = logging.getLogger(), self._folders_now()
        level = root.level
        self.is_watching = True
        root.addHandler(self)
        root.setLevel(logging.DEBUG)
        try:
            return (yield)
        finally:
            root.setLevel(level)
            root.removeHandler(self)
            self.is_watching = False
            self.said.clear()
            self.errors.clear()
            self.folders |= self._folders_now() - before

    def _folders_now(self) -> set[Path]:
        return set(self.base.iterdir()) if self.base is not None else set()

    # ----------------------------------------------------------------------------------------------------- searching

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Fail a test that has told of its patient, when all it says is said."""
        report: pytest.TestReport = yield
        if not self.is_watching or call.when != "teardown":
            return report
        for title, text in report.sections:
            if not title.startswith("Captured log"):  # these were taken as records
                self.note("output", text)
        for error in self.errors:
            self.note("error", "\n".join(said_by(error)))
        told = [f"{kind} with {' and '.join(found)}" for kind, text in self.said if (found := secrets_in(text))]
        self.searched.update(kind for kind, _ in self.said)
        if told and report.passed:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} tells of its patient: {'; '.join(dict.fromkeys(told))}."
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Look through all that the tests have left, and fail the run if the patient is in it."""
        for folder in sorted(self.folders):
            for path in sorted(folder.rglob("*")):
                self._search(path)
        if self.leaks and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if (told := getattr(session.config, "workeroutput", None)) is not None:
            told[_REPORT] = {"searched": dict(self.searched), "leaks": self.leaks}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of pytest-xdist has found, whose exit status nobody asks for."""
        told = getattr(node, "workeroutput", {}).get(_REPORT, {"searched": {}, "leaks": []})
        self.searched.update(told["searched"])
        self.leaks += told["leaks"]

    def _search(self, path: Path) -> None:
        """Search one file, or the name of a folder; DICOM and what the archive stores are meant to name the patient."""
        assert self.base is not None
        place = path.relative_to(self.base)
        found = [f"{what} in its name" for what in secrets_in(str(place))]
        self.searched["file name"] += 1
        if path.is_file() and STORAGE_FOLDER not in place.parts and not _is_dicom(path):
            self.searched["file"] += 1
            found += secrets_in(_content(path))
        if found:
            self.leaks.append(f"{place}: {' and '.join(found)}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was searched, so that a search of nothing is seen."""
        if not self.searched:
            return
        kinds = ", ".join(f"{count} {kind}s" for kind, count in sorted(self.searched.items()))
        terminalreporter.write_line(f"Searched for the patient of the DICOM tests: {kinds}; {len(self.leaks)} leaks.")
        for leak in self.leaks:
            terminalreporter.write_line(f"LEAK {leak}", red=True)


def _is_dicom(path: Path) -> bool:
    """Also one that a test has cut or overwritten in its beginning."""
    return path.suffix == ".dcm" or is_dicom_file(path)


def _content(path: Path) -> bytes:
    if path.suffix == ".gz":
        try:
            return gzip.decompress(path.read_bytes())
        except (OSError, EOFError):  # a test has cut it
            pass
    return path.read_bytes()
