"""What is refused before or without asking a server: arguments, addresses, credentials, and files to push."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import run, sentence_of
from ct_files import ct_values, write_dicom_series
from dicom_scenes import AXIAL, SHAPE_KJI
from dicom_server import our_credentials

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.transfer.archive import RemoteSeries, choose
from SAM2AssistLib.transfer.credentials import check_not_in_the_clear, credentials_for

__all__ = ["our_credentials"]


@pytest.fixture
def a_ct(tmp_path):
    folder = tmp_path / "ct"
    write_dicom_series(folder, ct_values(SHAPE_KJI), AXIAL)
    return folder


def test_two_servers_or_none_are_refused(a_ct, capfd):
    assert "--dicomweb URL" in sentence_of(run(capfd, "push", a_ct))
    both = ["--dicomweb", "https://pacs.example.org", "--host", "pacs.example.org"]
    assert "Two servers" in sentence_of(run(capfd, "push", a_ct, *both))


def test_credentials_in_an_address_are_refused_and_not_repeated(a_ct, capfd):
    sentence = sentence_of(run(capfd, "push", a_ct, "--dicomweb", "https://user:hidden@pacs.example.org"))
    assert "SAM2ASSIST_DICOMWEB_USER" in sentence
    assert "hidden" not in sentence


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999/x", "http://127.0.0.1:dicom/x", "http://[::1/x"])
def test_an_address_with_an_impossible_host_or_port_is_refused(a_ct, capfd, address):
    assert "host or a port" in sentence_of(run(capfd, "push", a_ct, "--dicomweb", address))


def test_credentials_are_not_sent_over_http_to_another_computer(monkeypatch):
    credentials = credentials_for("pacs.example.org")
    assert "not-a-secret" not in repr(credentials)
    with pytest.raises(InputError, match="https"):
        check_not_in_the_clear("http://pacs.example.org/dicom-web", credentials)
    check_not_in_the_clear("https://pacs.example.org/dicom-web", credentials)
    check_not_in_the_clear("http://localhost:8042/dicom-web", credentials)


def test_the_end_of_a_line_is_no_part_of_a_token(monkeypatch):
    monkeypatch.setenv("SAM2ASSIST_DICOMWEB_TOKEN", "not-a-secret\r\n")
    assert credentials_for("pacs.example.org").token == "not-a-secret"


def test_a_folder_that_holds_something_is_told_before_a_server_is_asked(a_ct, capfd):
    outcome = run(capfd, "pull", "--study", "1.2.3", "-o", a_ct, "--dicomweb", "http://localhost:9/dicom-web")
    assert "not empty" in sentence_of(outcome)


def test_credentials_come_from_the_keyring_where_the_environment_has_none(monkeypatch):
    keyring = pytest.importorskip("keyring")
    monkeypatch.delenv("SAM2ASSIST_DICOMWEB_USER")
    found = keyring.credentials.SimpleCredential("somebody", "hush")
    asked = []
    monkeypatch.setattr(keyring, "get_credential", lambda service, user: asked.append(service) or found)
    credentials = credentials_for("pacs.example.org")
    assert (credentials.user, credentials.password) == ("somebody", "hush")
    assert asked == ["sam2assist:pacs.example.org"]


@pytest.mark.parametrize("host", ["no such host", 70 * "x" + ".example.org"])
def test_a_host_that_has_no_address_is_told(a_ct, capfd, host):
    sentence = sentence_of(run(capfd, "push", a_ct, "--aet", "PACS", "--host", host, "--port", "104"))
    assert sentence.startswith(f"{host}:104 cannot be reached")


@pytest.mark.parametrize("title", ["", "x" * 17, "back\\slash", "Größe", "a\ttab"])
def test_titles_that_dicom_does_not_allow_are_refused(a_ct, capfd, title):
    arguments = ["--aet", title, "--host", "127.0.0.1", "--port", "104"]
    assert "title" in sentence_of(run(capfd, "push", a_ct, *arguments))


@pytest.mark.parametrize("study", ["", "*", "1.2.?", "1.2.3\\1.2.4", "../1.2"])
@pytest.mark.parametrize(
    "server", [["--dicomweb", "http://localhost:1"], ["--aet", "A", "--host", "::1", "--port", "1"]]
)
def test_a_study_that_could_be_anybodys_is_not_asked_for(tmp_path, capfd, study, server):
    sentence = sentence_of(run(capfd, "pull", "--study", study, "-o", tmp_path / "new", *server))
    assert "no StudyInstanceUID" in sentence


def test_what_is_no_dicom_file_is_not_pushed(tmp_path, capfd, a_ct):
    (tmp_path / "notes.txt").write_text("dear diary")
    (tmp_path / "empty").mkdir()
    server = ["--dicomweb", "https://pacs.example.org"]
    assert "no DICOM file" in sentence_of(run(capfd, "push", tmp_path / "notes.txt", *server))
    assert "no DICOM file to send" in sentence_of(run(capfd, "push", tmp_path / "empty", *server))
    assert "no file or folder" in sentence_of(run(capfd, "push", tmp_path / "gone.dcm", *server))


def test_a_tls_file_that_is_not_there_is_told_by_its_variable(a_ct, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("SAM2ASSIST_TLS_CA", str(tmp_path / "none.pem"))
    sentence = sentence_of(run(capfd, "push", a_ct, "--dicomweb", "https://pacs.example.org"))
    assert "SAM2ASSIST_TLS_CA" in sentence


def test_a_tls_key_without_its_certificate_is_refused(a_ct, capfd, monkeypatch, tmp_path):
    (tmp_path / "key.pem").write_text("a key")
    monkeypatch.setenv("SAM2ASSIST_TLS_KEY", str(tmp_path / "key.pem"))
    assert "name the certificate, too" in sentence_of(
        run(capfd, "push", a_ct, "--dicomweb", "https://pacs.example.org")
    )


def test_a_number_that_two_series_have_is_not_enough():
    twins = [RemoteSeries("1", uid, "2", "CT", "thorax", 10) for uid in ("1.1", "1.2")]
    with pytest.raises(InputError, match="several series of that number"):
        choose(twins, "2", "it")
    assert choose(twins, "1.2", "it").series_uid == "1.2"


def test_the_command_line_starts_without_dicom_and_network_libraries():
    code = (
        "import sys, SAM2AssistLib.cli.app; "
        "print([m for m in ('pydicom', 'pynetdicom', 'dicomweb_client', 'highdicom', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_a_truncated_image_is_not_pushed(a_ct, capfd):
    path = min(a_ct.iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated" in sentence_of(run(capfd, "push", a_ct, "--dicomweb", "https://pacs.example.org"))
