"""An Orthanc with its DICOMweb plugin on the loopback interface, for the time of a test."""

from __future__ import annotations

import http.server
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PLUGINS = [Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"), Path("/usr/lib/orthanc/libOrthancDicomWeb.so")]
USER, PASSWORD = "tester", "not-a-secret"
STORAGE_FOLDER = "storage-of-the-archive"
"""Where the server keeps what it was sent, and its index of patients."""


@pytest.fixture(autouse=True)
def our_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user and password of the server, in the environment as a user has them; for files that import this."""
    monkeypatch.setenv("SAM2ASSIST_DICOMWEB_USER", USER)
    monkeypatch.setenv("SAM2ASSIST_DICOMWEB_PASSWORD", PASSWORD)


@dataclass(frozen=True)
class Server:
    """Where it listens, and the port to which it sends what is asked for by C-MOVE."""

    http_port: int
    dicom_port: int
    move_port: int
    aet: str = "ORTHANC"

    @property
    def dicomweb(self) -> str:
        """Address of the DICOMweb service."""
        return f"http://localhost:{self.http_port}/dicom-web"

    @property
    def dimse(self) -> list[str]:
        """Arguments that name the server."""
        return ["--aet", self.aet, "--host", "localhost", "--port", str(self.dicom_port)]


def free_port() -> int:
    """Give a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of this computer, and its key."""
    program = shutil.which("openssl") or pytest.skip("openssl is not installed")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([program, *request, *names, *files], check=True, capture_output=True)
    return certificate, key


@contextmanager
def orthanc(folder: Path) -> Iterator[Server]:
    """Run a server whose data lies in a folder; the test is skipped where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugin = next((path for path in PLUGINS if path.exists()), None)
    if program is None or plugin is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)")
    server = Server(free_port(), free_port(), free_port())
    settings = {
        "StorageDirectory": str(folder / STORAGE_FOLDER),
        "IndexDirectory": str(folder / STORAGE_FOLDER),
        "Plugins": [str(plugin)],
        "HttpPort": server.http_port,
        "DicomPort": server.dicom_port,
        "DicomAet": server.aet,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomModalities": {"us": ["SAM2ASSIST", "127.0.0.1", server.move_port]},
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomAlwaysAllowFind": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait(server, process, folder / "orthanc.log")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(150):
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", server.http_port), timeout=1):
                return  # its web server is the last thing to start
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"Orthanc did not start: {log.read_text()[-2000:]}")


@contextmanager
def https_without_studies(certificate: Path, key: Path) -> Iterator[str]:
    """Run a DICOMweb service over TLS that has no studies, and give its address."""

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://localhost:{server.server_port}/dicom-web"
    finally:
        server.shutdown()


@contextmanager
def busy_at_first(refusals: int, status: int) -> Iterator[tuple[str, list[str]]]:
    """Run a DICOMweb service that takes anything after so many refusals; give its address, and what was asked."""
    asked: list[str] = []

    class Busy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.command)
            body = b"[]" if self.command == "GET" else b"{}"
            self.send_response(status if len(asked) <= refusals else 200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - the names that the base class looks for

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}/dicom-web", asked
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def answering(body: bytes, content_type: str) -> Iterator[str]:
    """Run a DICOMweb service that gives one answer to everything and ends it by closing; give its address."""

    class Parrot(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def storage(
    *, certificate: tuple[Path, Path] | None = None, breaks_at: Sequence[int] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Run a storage service; give its port, and the list of what it was sent.

    With a certificate and its key it speaks TLS. It breaks the connection in the place of these answers, from 1 on.
    """
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import CTImageStorage

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    received: list[str] = []
    answers = itertools.count(1)

    def store(event: evt.Event) -> int:
        if next(answers) in breaks_at:
            event.assoc.abort()
            return 0xA700
        received.append(str(event.dataset.SOPInstanceUID))
        return 0

    entity = AE(ae_title="STORAGE")
    entity.add_supported_context(CTImageStorage)
    port = free_port()
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)], ssl_context=context
    )
    try:
        yield port, received
    finally:
        server.shutdown()
