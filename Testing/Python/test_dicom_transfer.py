"""Through a real PACS: push a CT, pull it, segment it, push the result, find it there, pull it and read it."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from command_line import box_prompts, run, sentence_of, write_prompts
from ct_files import BIRTH_DATE, PATIENT_ID, PATIENT_NAME, ct_values, write_dicom_series
from dicom_scenes import AXIAL, OBLIQUE, a_series, apart
from dicom_server import (
    PASSWORD,
    Server,
    answering,
    busy_at_first,
    free_port,
    https_without_studies,
    orthanc,
    our_credentials,
    self_signed,
    storage,
)
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEGLosslessSV1, RLELossless

from SAM2AssistLib.errors import TransferError
from SAM2AssistLib.io.dicom_seg import write_dicom_seg
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation
from SAM2AssistLib.transfer.archive import RemoteSeries, choose
from SAM2AssistLib.transfer.dicomweb import DicomWebArchive
from SAM2AssistLib.transfer.dimse import DimseArchive, Peer
from SAM2AssistLib.transfer.moving import pull, push
from SAM2AssistLib.volume import CTVolume

SHAPE_KJI = (8, 64, 64)
__all__ = ["our_credentials"]


@pytest.fixture(scope="module")
def a_server(tmp_path_factory):
    """An Orthanc for all tests of this file."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def a_ct(tmp_path):
    """A series of a patient whose data must not show up anywhere, and its study."""
    folder = tmp_path / "ct"
    write_dicom_series(folder, ct_values(SHAPE_KJI), AXIAL)
    return folder, str(pydicom.dcmread(next(folder.iterdir())).StudyInstanceUID)


def server_arguments(server: Server, protocol: str) -> list[str]:
    """Arguments that name the server in the protocol of a test."""
    if protocol == "dicomweb":
        return ["--dicomweb", server.dicomweb]
    return server.dimse + (["--move-port", str(server.move_port)] if protocol == "c-move" else [])


def pixels_of(folder: Path) -> dict[str, np.ndarray]:
    """Pixels of each image by its UID."""
    return {ds.SOPInstanceUID: ds.pixel_array for ds in map(pydicom.dcmread, folder.iterdir())}


@pytest.mark.parametrize("protocol", ["dicomweb", "c-get", "c-move"])
def test_the_whole_way_through_a_pacs(a_server, a_ct, tmp_path, capfd, engine, protocol):
    folder, study = a_ct
    arguments = server_arguments(a_server, protocol)
    to = [part for part in arguments if part not in ("--move-port", str(a_server.move_port))]
    outcomes = [run(capfd, "push", folder, *to)]
    outcomes.append(run(capfd, "pull", "--study", study, "-o", tmp_path / "pulled", *arguments))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    sent, got = pixels_of(folder), pixels_of(tmp_path / "pulled")
    assert sent.keys() == got.keys()
    assert all(np.array_equal(sent[uid], got[uid]) for uid in sent)

    prompts = write_prompts(tmp_path / "prompts.json", box_prompts())
    to_seg = ["-o", tmp_path / "seg.dcm", "--prompts", prompts, "--preview", tmp_path / "seg.png", "--json"]
    outcomes.append(run(capfd, "segment", tmp_path / "pulled", *to_seg))
    outcomes.append(run(capfd, "push", tmp_path / "seg.dcm", *to))
    series = str(pydicom.dcmread(tmp_path / "seg.dcm").SeriesInstanceUID)
    outcomes.append(run(capfd, "pull", "--study", study, "--series", series, "-o", tmp_path / "back", *arguments))
    assert [outcome.code for outcome in outcomes[2:]] == [0, 0, 0], outcomes

    volume = CTVolume.read(folder)
    assert_same_segments(volume, tmp_path / "seg.dcm", tmp_path / "back" / "00001.dcm")
    for outcome in outcomes:
        assert_private(outcome.out + outcome.err, folder)
    assert_private("\n".join(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")), folder)
    beside = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert tmp_path / "seg.prompts.json" in beside
    for path in beside:
        assert_private(path.read_bytes().decode("latin-1"), folder)


def assert_same_segments(volume, first, second):
    """Both files have the same segments in the volume."""
    one, other = (masks_on_grid_of(volume, *read_segmentation(path, volume)) for path in (first, second))
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.name == b.name
        assert a.mask.any()
        np.testing.assert_array_equal(a.mask, b.mask)


def assert_private(text: str, folder: Path) -> None:
    """Neither the patient nor a UID of the series is in a text."""
    header = pydicom.dcmread(next(folder.iterdir()))
    uids = [str(header[word].value) for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    for secret in (*PATIENT_NAME.split("^"), PATIENT_ID, BIRTH_DATE, PASSWORD, *uids):
        assert secret not in text


def test_a_pushed_segmentation_is_found_with_references_to_the_series(a_server, a_ct, tmp_path):
    folder, study = a_ct
    archive = DicomWebArchive(a_server.dicomweb)
    list(push(archive, [folder]))
    volume = CTVolume.read(folder)
    write_dicom_seg(tmp_path / "seg.dcm", apart(SHAPE_KJI), volume)
    list(push(archive, [tmp_path / "seg.dcm"]))
    found = {series.modality: series for series in archive.series_of(study)}
    assert set(found) == {"CT", "SEG"}
    (seg,) = archive.fetch(found["SEG"])
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == found["CT"].series_uid
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == set(pixels_of(folder))


def test_progress_counts_up_to_the_total(a_server, a_ct, tmp_path):
    folder, study = a_ct
    archive = DicomWebArchive(a_server.dicomweb)
    sent = list(push(archive, [folder]))
    assert [step.done for step in sent] == list(range(1, 17))
    (series,) = archive.series_of(study)
    got = list(pull(archive, series, tmp_path / "new"))
    assert [step.done for step in got] == list(range(1, 9))
    assert {step.total for step in got} == {8}


@pytest.mark.parametrize("protocol", ["dicomweb", "dimse"])
def test_a_pull_that_is_stopped_leaves_nothing(a_server, a_ct, tmp_path, protocol):
    folder, study = a_ct
    archive = an_archive(a_server, protocol)
    list(push(archive, [folder]))
    steps = pull(archive, choose(archive.series_of(study), None, "it"), tmp_path / "new")
    next(steps)
    steps.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct"]


def an_archive(server, protocol):
    """The server by one of the protocols."""
    if protocol == "dicomweb":
        return DicomWebArchive(server.dicomweb)
    return DimseArchive(Peer("127.0.0.1", server.dicom_port, server.aet))


@pytest.mark.parametrize("protocol", ["dicomweb", "dimse"])
def test_a_study_that_is_not_there_is_told_without_its_uid(a_server, tmp_path, capfd, protocol):
    arguments = server_arguments(a_server, "dicomweb" if protocol == "dicomweb" else "c-get")
    sentence = sentence_of(run(capfd, "pull", "--study", "1.2.3.4", "-o", tmp_path / "new", *arguments))
    assert "no such study" in sentence
    assert "1.2.3.4" not in sentence


def test_a_wrong_password_is_told_without_it(a_server, a_ct, capfd, monkeypatch):
    monkeypatch.setenv("SAM2ASSIST_DICOMWEB_PASSWORD", "wrong-one")
    sentence = sentence_of(run(capfd, "push", a_ct[0], "--dicomweb", a_server.dicomweb))
    assert "HTTP 401" in sentence
    assert "SAM2ASSIST_DICOMWEB_USER" in sentence
    assert "wrong-one" not in sentence


def test_an_address_that_is_not_of_a_dicomweb_service_is_told(a_server, a_ct, capfd):
    address = f"http://127.0.0.1:{a_server.http_port}/nowhere"
    assert "404" in sentence_of(run(capfd, "push", a_ct[0], "--dicomweb", address))


@pytest.mark.parametrize("protocol", ["dicomweb", "dimse"])
def test_a_server_that_is_not_there_is_told(a_ct, capfd, protocol, monkeypatch):
    from SAM2AssistLib.transfer import dicomweb, dimse

    monkeypatch.setattr(dicomweb, "_ATTEMPTS", 1)
    monkeypatch.setattr(dimse, "_ATTEMPTS", 1)
    server = Server(free_port(), free_port(), free_port())
    arguments = server_arguments(server, "dicomweb" if protocol == "dicomweb" else "c-get")
    assert "cannot be reached" in sentence_of(run(capfd, "push", a_ct[0], *arguments))


def test_a_lost_connection_is_tried_again(a_server, a_ct, monkeypatch):
    from pynetdicom import AE

    real, calls = AE.associate, []

    def failing_once(entity, *arguments, **settings):
        calls.append(arguments)
        port = free_port() if len(calls) == 1 else arguments[1]
        return real(entity, arguments[0], port, *arguments[2:], **settings)

    monkeypatch.setattr(AE, "associate", failing_once)
    archive = an_archive(a_server, "dimse")
    assert list(archive.store(sorted(a_ct[0].iterdir())))
    assert len(calls) == 2


def test_a_connection_that_breaks_while_files_are_sent_is_made_again(a_ct):
    files = sorted(a_ct[0].iterdir())
    with storage(breaks_at=(3, 4)) as (port, received):
        assert list(DimseArchive(Peer("localhost", port, "STORAGE")).store(files)) == files
    assert sorted(received) == sorted(pixels_of(a_ct[0]))


def test_a_connection_that_breaks_again_and_again_is_told(a_ct):
    files = sorted(a_ct[0].iterdir())
    with storage(breaks_at=range(3, 99)) as (port, received), pytest.raises(TransferError, match="broke 3 times"):
        list(DimseArchive(Peer("localhost", port, "STORAGE")).store(files))
    assert len(received) == 2


@contextmanager
def archive_without_transcoding(datasets, answer=0xFF00):
    """An archive that gives images by C-GET only in the encoding that it keeps them in; also what was offered."""
    from pynetdicom import AE, evt, sop_class

    def get(event):
        offered.extend(event.assoc.requestor.requested_contexts)
        yield len(datasets)
        for dataset in datasets:
            yield answer, dataset

    offered = []
    entity = AE(ae_title="PACS")
    entity.add_supported_context(sop_class.StudyRootQueryRetrieveInformationModelGet)
    kept = [ImplicitVRLittleEndian, *{dataset.file_meta.TransferSyntaxUID for dataset in datasets}]
    entity.add_supported_context(sop_class.CTImageStorage, kept, scu_role=True, scp_role=True)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_GET, get)])
    try:
        yield DimseArchive(Peer("127.0.0.1", server.server_address[1], "PACS")), offered
    finally:
        server.shutdown()


def series_to_fetch(folder, syntax=None):
    """The images of a folder, their encoding called by another name, and the series as an archive lists it."""
    datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for dataset in datasets:
        if syntax is RLELossless:
            dataset.compress(syntax, generate_instance_uid=False)
        elif syntax is not None:
            dataset.PixelData = encapsulate([b"not decoded on the way!!"])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
    first = datasets[0]
    return datasets, RemoteSeries(first.StudyInstanceUID, first.SeriesInstanceUID, "1", "CT", "", len(datasets))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1], ids=["RLE", "JPEG lossless"])
def test_images_come_by_c_get_in_the_encoding_that_the_archive_keeps(a_ct, tmp_path, syntax):
    datasets, series = series_to_fetch(a_ct[0], syntax)
    with archive_without_transcoding(datasets) as (archive, offered):
        list(pull(archive, series, tmp_path / "pulled"))
    pulled = [pydicom.dcmread(path) for path in (tmp_path / "pulled").iterdir()]
    assert {dataset.file_meta.TransferSyntaxUID for dataset in pulled} == {syntax}
    assert {ds.SOPInstanceUID: ds.PixelData for ds in pulled} == {ds.SOPInstanceUID: ds.PixelData for ds in datasets}
    assert len(offered) <= 128


def test_a_failed_c_get_is_told_without_advice_about_c_move(a_ct, tmp_path):
    datasets, series = series_to_fetch(a_ct[0])
    serving = archive_without_transcoding(datasets, answer=0xA701)
    refused = pytest.raises(TransferError, match=r"did not send the whole series .*0xA701")
    with serving as (archive, _), refused as caught:
        list(pull(archive, series, tmp_path / "pulled"))
    assert "C-MOVE" not in str(caught.value)


@pytest.fixture
def without_long_waits(monkeypatch):
    """Wait for milliseconds between attempts."""
    from SAM2AssistLib.transfer import dicomweb

    monkeypatch.setattr(dicomweb, "_FIRST_WAIT_SECONDS", 0.002)


def test_what_a_server_says_of_a_series_is_taken_whatever_is_missing_or_divided():
    answer = pydicom.Dataset()
    answer.SeriesInstanceUID, answer.SeriesDescription, answer.NumberOfSeriesRelatedInstances = "1.2.3", r"a\b", None
    assert RemoteSeries.answered("1.2", answer) == RemoteSeries("1.2", "1.2.3", "", "", "a/b", None)
    answer.SeriesNumber, answer.Modality, answer.NumberOfSeriesRelatedInstances = 4, "CT", 20
    assert str(RemoteSeries.answered("1.2", answer)) == "4 ('a/b', CT, 20 images)"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_service_that_is_busy_is_asked_again(without_long_waits, status):
    with busy_at_first(2, status) as (address, asked):
        assert DicomWebArchive(address).series_of("1.2.3") == []
    assert asked == ["GET"] * 3


def test_what_a_busy_service_did_not_take_is_sent_again(without_long_waits, a_ct):
    path = min(a_ct[0].iterdir())
    with busy_at_first(2, 503) as (address, asked):
        assert list(DicomWebArchive(address).store([path])) == [path]
    assert asked == ["POST"] * 3


def test_a_service_that_stays_busy_is_told(without_long_waits, capfd, tmp_path):
    with busy_at_first(99, 503) as (address, asked):
        sentence = sentence_of(run(capfd, "pull", "--study", "1.2.3", "-o", tmp_path / "new", "--dicomweb", address))
    assert "HTTP 503" in sentence
    assert len(asked) == 4


MULTIPART = 'multipart/related; type="application/dicom"; boundary=XX'


def parts(*contents):
    """Make the body of an answer of several parts."""
    return b"".join(b"--XX\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in contents) + b"--XX--"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Please log in</html>", "text/html"),
        (b"\xff", "application/dicom+json"),
        (b"[{}]", "application/dicom+json"),
        (100_000 * b"[", "application/dicom+json"),
    ],
    ids=["a page", "no text", "a series without its UID", "nested too deeply"],
)
def test_an_answer_to_a_search_that_is_not_dicomwebs_is_told(tmp_path, capfd, body, kind):
    with answering(body, kind) as address:
        sentence = sentence_of(run(capfd, "pull", "--study", "1.2.3", "-o", tmp_path / "new", "--dicomweb", address))
    assert "is not DICOMweb's" in sentence


def test_what_is_sent_in_place_of_images_is_told_and_leaves_nothing(tmp_path):
    series = RemoteSeries("1.2", "1.3", "1", "CT", "", None)
    refused = pytest.raises(TransferError, match="is not DICOMweb's")
    with answering(parts(b"no such image"), MULTIPART) as address, refused:
        list(pull(DicomWebArchive(address), series, tmp_path / "new"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [2, None], ids=["of a known number", "of an unknown number"])
def test_images_whose_connection_closed_before_its_end_are_no_series(tmp_path, a_ct, count):
    series = RemoteSeries("1.2", "1.3", "1", "CT", "", count)
    body = parts(*(path.read_bytes() for path in sorted(a_ct[0].iterdir())[:2]))
    refused = pytest.raises(TransferError, match="cut off")
    with answering(body[:-300], MULTIPART) as address, refused:
        list(pull(DicomWebArchive(address), series, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_server_that_loses_what_it_accepted_is_found_out(a_ct, monkeypatch):
    from SAM2AssistLib.transfer import moving

    class Forgetful:
        name = "forgetful:104"

        def store(self, files):
            yield from files

        def holds(self, instance):
            return False

    monkeypatch.setattr(moving, "_FIRST_WAIT_SECONDS", 0)
    with pytest.raises(TransferError, match="accepted .* but does not have it"):
        list(push(Forgetful(), [a_ct[0]]))


def test_a_folder_that_holds_something_is_not_pulled_into(a_server, a_ct, tmp_path, capfd):
    folder, study = a_ct
    list(push(DicomWebArchive(a_server.dicomweb), [folder]))
    outcome = run(capfd, "pull", "--study", study, "-o", folder, "--dicomweb", a_server.dicomweb)
    assert "not empty" in sentence_of(outcome)
    assert len(list(folder.iterdir())) == 8


def test_of_several_series_one_has_to_be_chosen_by_its_number(a_server, tmp_path, capfd):
    study = pydicom.uid.generate_uid()
    for number in (3, 4):
        write_dicom_series(
            tmp_path / "both", ct_values((3, 16, 16)), OBLIQUE, prefix=f"s{number}", SeriesNumber=number,
            StudyInstanceUID=study,
        )  # fmt: skip
    list(push(DicomWebArchive(a_server.dicomweb), [tmp_path / "both"]))
    arguments = ["pull", "--study", study, "-o", tmp_path / "one", "--dicomweb", a_server.dicomweb]
    sentence = sentence_of(run(capfd, *arguments))
    assert "3 ('test series', CT, 3 images); 4 (" in sentence
    outcome = run(capfd, *arguments, "--series", "4", "--json")
    assert json.loads(outcome.out)["images"] == 3
    assert {int(pydicom.dcmread(path).SeriesNumber) for path in (tmp_path / "one").iterdir()} == {4}


@pytest.fixture(scope="module")
def a_certificate(tmp_path_factory):
    """A certificate of this computer and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_dicomweb_over_tls_trusts_the_authority_that_the_environment_names(a_certificate, tmp_path, capfd, monkeypatch):
    with https_without_studies(*a_certificate) as address:
        arguments = ["pull", "--study", "1.2.3", "-o", tmp_path / "new", "--dicomweb", address]
        assert "SAM2ASSIST_TLS_CA" in sentence_of(run(capfd, *arguments))
        monkeypatch.setenv("SAM2ASSIST_TLS_CA", str(a_certificate[0]))
        assert "no such study" in sentence_of(run(capfd, *arguments))


def test_storing_over_tls_trusts_the_authority_that_the_environment_names(a_certificate, a_ct, monkeypatch):
    from SAM2AssistLib.transfer import dimse

    monkeypatch.setattr(dimse, "_ATTEMPTS", 1)
    files = sorted(a_ct[0].iterdir())
    with storage(certificate=a_certificate) as (port, received):
        archive = DimseArchive(Peer("localhost", port, "STORAGE", tls=True))
        with pytest.raises(TransferError, match="SAM2ASSIST_TLS_CA"):
            list(archive.store(files))
        monkeypatch.setenv("SAM2ASSIST_TLS_CA", str(a_certificate[0]))
        assert list(archive.store(files)) == files
    assert sorted(received) == sorted(pixels_of(a_ct[0]))


def test_the_libraries_do_not_log_what_they_ask_for(a_server, a_ct, caplog):
    caplog.set_level(logging.WARNING)
    list(push(DicomWebArchive(a_server.dicomweb), [a_ct[0]]))
    assert_private(caplog.text, a_ct[0])


def test_an_oblique_series_comes_through_unchanged(a_server, tmp_path):
    volume = a_series(tmp_path / "ct")
    archive = an_archive(a_server, "dimse")
    list(push(archive, [tmp_path / "ct"]))
    study = str(pydicom.dcmread(volume.dicom_files[0]).StudyInstanceUID)
    list(pull(archive, choose(archive.series_of(study), None, "it"), tmp_path / "pulled"))
    again = CTVolume.read(tmp_path / "pulled")
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.ijk_to_lps, volume.ijk_to_lps)
