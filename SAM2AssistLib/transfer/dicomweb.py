"""A DICOMweb server (PS3.18): QIDO-RS to find, WADO-RS to fetch, STOW-RS to store, by dicomweb-client."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydicom.dataset import Dataset

from SAM2AssistLib.errors import InputError, TransferError
from SAM2AssistLib.io._dicom_headers import PARSE_ERRORS, read_dicom
from SAM2AssistLib.transfer.archive import Instance, RemoteSeries
from SAM2AssistLib.transfer.credentials import check_address, check_not_in_the_clear, credentials_for, tls_files

if TYPE_CHECKING:
    import requests
    from dicomweb_client import DICOMwebClient

_SECONDS = (10.0, 120.0)  # to connect, and without a byte
_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.5

# Of the server, or of what stands before it.
_BUSY = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

# dicomweb-client sends larger messages as a stream, which it cannot send again when the server asks for patience.
_STREAM_ABOVE_BYTES = 2**31
_READ_BYTES = 10**6


class DicomWebArchive:
    """A DICOMweb server.

    Parameters
    ----------
    url : str
        Of the service, such as https://pacs.example.org/dicom-web; without credentials.

    Raises
    ------
    InputError
        If the address cannot be used, or the packages are not installed.
    """

    def __init__(self, url: str) -> None:
        check_address(url)
        parts = urlsplit(url)
        self._name = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        self._client = _client(url, str(parts.hostname))

    @property
    def name(self) -> str:
        """Host and port."""
        return self._name

    def series_of(self, study_uid: str) -> list[RemoteSeries]:
        """List the series of a study (QIDO-RS)."""
        with self._told("search"):
            fields = ["SeriesNumber", "SeriesDescription", "Modality", "NumberOfSeriesRelatedInstances"]
            answers = self._client.search_for_series(study_uid, fields=fields)
            return [RemoteSeries.answered(study_uid, Dataset.from_json(answer)) for answer in answers]

    def fetch(self, series: RemoteSeries) -> Iterator[Dataset]:
        """Give the objects of a series one by one, in the transfer syntax the server keeps them in (WADO-RS)."""
        self._client.set_chunk_size(_READ_BYTES)
        with self._told("retrieval"):
            yield from self._client.iter_series(
                series.study_uid, series.series_uid, media_types=(("application/dicom", "*"),)
            )

    def store(self, files: Sequence[Path]) -> Iterator[Path]:
        """Send files one by one (STOW-RS)."""
        self._client.set_chunk_size(_STREAM_ABOVE_BYTES)
        for path in files:
            dataset = read_dicom(path, with_pixels=True)
            with self._told("storing"):
                answer = self._client.store_instances([dataset], dataset.StudyInstanceUID)
            if answer.get("FailedSOPSequence"):
                raise TransferError(f"{self.name} did not accept {path.name}; ask who runs it why.")
            yield path

    def holds(self, instance: Instance) -> bool:
        """Ask whether the server has an object (QIDO-RS)."""
        with self._told("search"):
            return bool(
                self._client.search_for_instances(
                    instance.study_uid, instance.series_uid, search_filters={"SOPInstanceUID": instance.sop_uid}
                )
            )

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Make one sentence of what can go wrong on the way.

        Raised without what it was made of: addresses hold UIDs, and answers the patient.
        """
        import requests
        from retrying import RetryError  # dicomweb-client asks again with it

        strange = f"{self.name} gave an answer to the {what} that is not DICOMweb's."
        try:
            yield
        except RetryError as error:
            status = error.last_attempt.value.status_code
            raise TransferError(
                f"{self.name} was too busy for the {what} (HTTP {status}, asked {_ATTEMPTS} times); try again later."
            ) from None
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            raise TransferError(f"{self.name} refused the {what} ({_meaning(status)}).") from None
        except requests.exceptions.SSLError:
            raise TransferError(
                f"The certificate of {self.name} cannot be trusted; name the authority's file in SAM2ASSIST_TLS_CA."
            ) from None
        except requests.JSONDecodeError:
            raise TransferError(strange) from None
        except (requests.RequestException, OSError):
            raise TransferError(f"{self.name} cannot be reached; check the address and the network.") from None
        except (*PARSE_ERRORS, SyntaxError, RecursionError):  # of DICOM, XML and JSON
            raise TransferError(strange) from None


def _client(url: str, host: str) -> DICOMwebClient:
    try:
        from dicomweb_client import DICOMwebClient
    except ModuleNotFoundError as error:
        raise InputError(
            "DICOMweb needs the package dicomweb-client; install it with: pip install dicomweb-client."
        ) from error
    # They log addresses, and these hold UIDs.
    for library in ("dicomweb_client", "retrying", "urllib3"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    client = DICOMwebClient(url, session=_session(url, host), timeout=_SECONDS)
    client.set_http_retry_params(
        max_attempts=_ATTEMPTS,
        wait_exponential_multiplier=int(500 * _FIRST_WAIT_SECONDS),
        retriable_error_codes=_BUSY,
    )
    return client


def _session(url: str, host: str) -> requests.Session:
    import requests

    class OwnAuthorities(requests.Session):
        """Keeps the authorities it was given; REQUESTS_CA_BUNDLE, which some systems set, would take their place."""

        def merge_environment_settings(self, *given: Any) -> Any:
            return {**super().merge_environment_settings(*given), "verify": self.verify}

    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    credentials, files = credentials_for(host), tls_files()
    check_not_in_the_clear(url, credentials)
    session = OwnAuthorities() if files.authorities else requests.Session()
    if credentials.token:
        session.headers["Authorization"] = f"Bearer {credentials.token}"
    elif credentials.user:
        session.auth = (credentials.user, credentials.password)
    if files.authorities:
        session.verify = str(files.authorities)
    if files.certificate:
        session.cert = (str(files.certificate), str(files.key)) if files.key else str(files.certificate)
    # Only what did not reach the server is sent again here; answers that ask for patience are dicomweb-client's part.
    retry = Retry(total=_ATTEMPTS - 1, read=0, status=0, other=0, backoff_factor=_FIRST_WAIT_SECONDS)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _meaning(status: int) -> str:
    """An HTTP status in words that tell what to do."""
    if status in (401, 403):
        return f"HTTP {status}: set SAM2ASSIST_DICOMWEB_USER and _PASSWORD, or _TOKEN, to ones that may do this"
    if status == 404:
        return "HTTP 404: it is not there, or the address is not that of the DICOMweb service"
    return f"HTTP {status}"
