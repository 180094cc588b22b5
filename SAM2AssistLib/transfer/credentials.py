"""Who this program is to a server: from the environment or the keyring, never from the command line or a log.

The environment variables are

=============================================== =======================================================================
SAM2ASSIST_DICOMWEB_TOKEN                       bearer token
SAM2ASSIST_DICOMWEB_USER, ..._PASSWORD          user and password
SAM2ASSIST_TLS_CA                               file with the certificates that are trusted, in place of the system's
SAM2ASSIST_TLS_CERT, SAM2ASSIST_TLS_KEY         files with the certificate and key of this program
=============================================== =======================================================================

Without a variable the keyring is asked for the service ``sam2assist:HOST``; a password is put there with
``keyring set sam2assist:HOST USER``.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from SAM2AssistLib.errors import InputError

KEYRING_SERVICE = "sam2assist:{host}"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Credentials:
    """A token, or a user with a password, or nothing; not shown by `repr`."""

    token: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.token or self.user)


@dataclass(frozen=True)
class TlsFiles:
    """Files that TLS needs beyond what the system brings; None where not given."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def credentials_for(host: str) -> Credentials:
    """Find the credentials for a host in the environment, else in the keyring."""
    # Read from a file, a token often brings the end of its line along, which no header may have in it.
    token = os.environ.get("SAM2ASSIST_DICOMWEB_TOKEN", "").strip()
    user = os.environ.get("SAM2ASSIST_DICOMWEB_USER", "")
    if token or user:
        return Credentials(token, user, os.environ.get("SAM2ASSIST_DICOMWEB_PASSWORD", ""))
    try:
        import keyring
        from keyring.errors import KeyringError
    except ModuleNotFoundError:
        return Credentials()
    try:
        found = keyring.get_credential(KEYRING_SERVICE.format(host=host), None)
    except KeyringError:  # without a desktop there is often none that can be opened
        return Credentials()
    return Credentials(user=found.username, password=found.password) if found else Credentials()


def check_address(url: str) -> None:
    """Refuse an address that would show credentials on the command line or send them in the clear.

    Parameters
    ----------
    url : str
        Of a DICOMweb service.

    Raises
    ------
    InputError
        If it is no http address, has an impossible port, or has a user or a password in it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # brackets that do not match, or a port that is none; the message may quote what is hidden
        raise InputError("The address after --dicomweb has a host or a port that cannot be; check it.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("The address after --dicomweb has to begin with https:// or http:// and a host.")
    if parts.username or parts.password:
        raise InputError(
            "The address after --dicomweb has credentials in it, which others on this computer can see; set "
            "SAM2ASSIST_DICOMWEB_USER and SAM2ASSIST_DICOMWEB_PASSWORD instead."
        )


def check_not_in_the_clear(url: str, credentials: Credentials) -> None:
    """Refuse to send credentials over http to another computer.

    Raises
    ------
    InputError
        If there are credentials, and the address is http and not of this computer.
    """
    parts = urlsplit(url)
    if credentials and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise InputError("Credentials are not sent over http, where others can read them; use the https address.")


def tls_files() -> TlsFiles:
    """Find the files for TLS in the environment.

    Raises
    ------
    InputError
        If a variable names a file that is not there, or there is a key without its certificate.
    """
    found = {}
    for field_name, variable in (("authorities", "CA"), ("certificate", "CERT"), ("key", "KEY")):
        value = os.environ.get(f"SAM2ASSIST_TLS_{variable}")
        if value and not Path(value).is_file():
            raise InputError(f"SAM2ASSIST_TLS_{variable} names a file that is not there; correct or unset it.")
        found[field_name] = Path(value) if value else None
    if found["key"] and not found["certificate"]:
        raise InputError("SAM2ASSIST_TLS_KEY is of no use without SAM2ASSIST_TLS_CERT; name the certificate, too.")
    return TlsFiles(**found)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Make the TLS settings of a client that checks whom it talks to.

    Raises
    ------
    InputError
        If a file cannot be read, or is no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=files.authorities)
        if files.certificate:
            context.load_cert_chain(files.certificate, files.key)
    except OSError as error:  # of ssl, too
        raise InputError("A file named in SAM2ASSIST_TLS_* is no certificate or key that can be used.") from error
    return context
