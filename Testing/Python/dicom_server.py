"""An Orthanc with its DICOMweb plugin on the loopback interface, for the time of a test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PLUGINS = [Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"), Path("/usr/lib/orthanc/libOrthancDicomWeb.so")]
USER, PASSWORD = "tester", "not-a-secret"


@dataclass(frozen=True)
class Server:
    """Where it listens, and the port to which it sends what is asked for by C-MOVE."""

    http_port: int
    dicom_port: int
    move_port: int
    aet: str = "ORTHANC"
    scheme: str = "http"

    @property
    def dicomweb(self) -> str:
        """Address of the DICOMweb service."""
        return f"{self.scheme}://localhost:{self.http_port}/dicom-web"

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
def orthanc(folder: Path, *, tls: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """Run a server whose data lies in a folder; the test is skipped where it is not installed.

    With a certificate and its key it speaks nothing but TLS.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugin = next((path for path in PLUGINS if path.exists()), None)
    if program is None or plugin is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)")
    server = Server(free_port(), free_port(), free_port(), scheme="https" if tls else "http")
    settings: dict[str, object] = {
        "StorageDirectory": str(folder / "data"),
        "IndexDirectory": str(folder / "data"),
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
    if tls:
        certificate, key = tls
        (folder / "both.pem").write_text(key.read_text() + certificate.read_text())
        settings |= {
            "SslEnabled": True,
            "SslCertificate": str(folder / "both.pem"),
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(certificate),
            "DicomTlsPrivateKey": str(key),
            "DicomTlsTrustedCertificates": str(certificate),
            "DicomTlsRemoteCertificateRequired": False,
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
