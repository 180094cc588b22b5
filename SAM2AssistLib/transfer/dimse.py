"""A server that speaks the DICOM network protocol (PS3.7): C-FIND, C-GET or C-MOVE, C-STORE, by pynetdicom."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from SAM2AssistLib.errors import InputError, TransferError
from SAM2AssistLib.io._dicom_headers import read_dicom
from SAM2AssistLib.transfer.archive import Instance, RemoteSeries
from SAM2AssistLib.transfer.credentials import client_context, tls_files

if TYPE_CHECKING:
    from pynetdicom import AE
    from pynetdicom.association import Association

# What is fetched: CT, enhanced CT and that converted from single images, segmentations, structure sets.
_STORAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
    "1.2.840.10008.5.1.4.1.1.481.3",
)
_SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLosslessSV1,
    RLELossless,
]
_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
_STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

_ATTEMPTS = 3
_FIRST_WAIT_SECONDS = 0.5
_SECONDS_WITHOUT_ANSWER = 60
_PENDING, _SUCCESS, _OUT_OF_RESOURCES = (0xFF00, 0xFF01), 0x0000, 0xA700


@dataclass(frozen=True)
class Peer:
    """Where a server is, and what this program calls itself there.

    Attributes
    ----------
    host, port
        Address of the server.
    aet : str
        Its application entity title.
    own_aet : str
        Ours, which many servers have to know.
    move_port : int or None
        Port where we wait for objects, so that they are asked for by C-MOVE; None for C-GET.
    tls : bool
        Whether to speak TLS.
    """

    host: str
    port: int
    aet: str
    own_aet: str = "SAM2ASSIST"
    move_port: int | None = None
    tls: bool = False


class _Inbox:
    """Where objects arrive from the thread of an exchange; the last thing is None, or what went wrong."""

    def __init__(self) -> None:
        self.arrived: queue.Queue[Dataset | TransferError | None] = queue.Queue()
        self.closed = threading.Event()  # nobody waits any more, so that the server need not go on sending


class DimseArchive:
    """A server that speaks the DICOM network protocol.

    Raises
    ------
    InputError
        If pynetdicom is not installed.
    """

    def __init__(self, peer: Peer) -> None:
        try:
            import pynetdicom  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError(
                "C-STORE and C-GET need the package pynetdicom; install it with: pip install pynetdicom."
            ) from error
        # It logs identifiers of what it asks for.
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
        self._peer = peer

    @property
    def name(self) -> str:
        """Host and port."""
        return f"{self._peer.host}:{self._peer.port}"

    def series_of(self, study_uid: str) -> list[RemoteSeries]:
        """List the series of a study (C-FIND)."""
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "SERIES", study_uid, ""
        query.SeriesNumber = query.NumberOfSeriesRelatedInstances = None
        query.SeriesDescription = query.Modality = ""
        return [RemoteSeries.answered(study_uid, item) for item in self._find(query)]

    def fetch(self, series: RemoteSeries) -> Iterator[Dataset]:
        """Give the objects of a series one by one (C-GET, or C-MOVE to a port of ours)."""
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = series.study_uid, series.series_uid
        inbox = _Inbox()
        run = self._get if self._peer.move_port is None else self._move
        worker = threading.Thread(target=_reporting, args=(run, query, inbox), daemon=True)
        worker.start()
        try:
            while (item := inbox.arrived.get()) is not None:
                if isinstance(item, TransferError):
                    raise item
                yield item
        finally:
            inbox.closed.set()
            worker.join()

    def store(self, files: Sequence[Path]) -> Iterator[Path]:
        """Send files over one association (C-STORE), over another one where that breaks."""
        datasets = [read_dicom(path) for path in files]
        entity = self._entity()
        for sop_class, syntax in sorted({(str(ds.SOPClassUID), ds.file_meta.TransferSyntaxUID) for ds in datasets}):
            entity.add_requested_context(sop_class, syntax)
        waiting, broken = deque(files), 0
        while waiting:
            with self._associated(entity) as association:
                while waiting and self._send(association, waiting[0]):
                    broken = 0
                    yield waiting.popleft()
            broken += bool(waiting)
            if broken == _ATTEMPTS:
                raise TransferError(f"The connection to {self.name} broke {_ATTEMPTS} times at {waiting[0].name}.")

    def holds(self, instance: Instance) -> bool:
        """Ask whether the server has an object (C-FIND)."""
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "IMAGE", instance.study_uid
        query.SeriesInstanceUID, query.SOPInstanceUID = instance.series_uid, instance.sop_uid
        return bool(self._find(query))

    # ------------------------------------------------------------------------------------------------- one exchange

    def _entity(self) -> AE:
        from pynetdicom import AE

        entity = AE(ae_title=self._peer.own_aet)
        entity.acse_timeout = entity.network_timeout = entity.dimse_timeout = _SECONDS_WITHOUT_ANSWER
        return entity

    @contextmanager
    def _associated(self, entity: AE, **settings: Any) -> Iterator[Association]:
        """An association with the server, tried a few times; released at the end, aborted where something fails."""
        peer = self._peer
        if peer.tls:
            settings["tls_args"] = (client_context(tls_files()), peer.host)
        wait = _FIRST_WAIT_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                association = entity.associate(peer.host, peer.port, ae_title=peer.aet, **settings)
            except (OSError, UnicodeError):  # a host that has no address, or cannot have one
                raise TransferError(f"{self.name} cannot be reached; check the host after --host.") from None
            if association.is_established or association.is_rejected or attempt == _ATTEMPTS:
                break
            time.sleep(wait)
            wait *= 2
        if not association.is_established:
            advice = "SAM2ASSIST_TLS_CA, which has to name who vouches for it" if peer.tls else "whether it wants --tls"
            reason = f"cannot be reached; check host, port and network, and {advice}"
            if association.is_rejected:
                reason = f"does not know {peer.own_aet} or is not called {peer.aet}; correct --own-aet or --aet"
            raise TransferError(f"{self.name} {reason}.")
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _find(self, query: Dataset) -> list[Dataset]:
        entity = self._entity()
        entity.add_requested_context(_STUDY_ROOT_FIND)
        found = []
        with self._associated(entity) as association:
            self._check_accepted(association, "a search")
            for status, item in association.send_c_find(query, _STUDY_ROOT_FIND):
                if status and status.Status in _PENDING and item is not None:
                    found.append(item)
                elif not status or status.Status != _SUCCESS:
                    raise TransferError(f"{self.name} did not answer a search (status {_hex(status)}).")
        return found

    def _get(self, query: Dataset, inbox: _Inbox) -> None:
        from pynetdicom import build_role, evt

        entity = self._entity()
        entity.add_requested_context(_STUDY_ROOT_GET)
        # A server accepts a context in one syntax, which may not be that of its images, and not all of them transcode.
        # There are at most 128 contexts (PS3.8, 9.3.2.2).
        for sop_class, syntax in itertools.product(_STORAGE_CLASSES, _SYNTAXES):
            entity.add_requested_context(sop_class, syntax)
        roles = [build_role(sop_class, scp_role=True) for sop_class in _STORAGE_CLASSES]
        handlers: list[Any] = [(evt.EVT_C_STORE, _accept, [inbox])]
        with self._associated(entity, ext_neg=roles, evt_handlers=handlers) as association:
            self._check_accepted(association, "C-GET", "; try C-MOVE with --move-port")
            advice = "try again, or pull it by DICOMweb, which takes images in every encoding"
            self._check_moved(association.send_c_get(query, _STUDY_ROOT_GET), advice)

    def _move(self, query: Dataset, inbox: _Inbox) -> None:
        from pynetdicom import evt

        port = self._peer.move_port or 0
        receiver = self._entity()
        for sop_class in _STORAGE_CLASSES:
            receiver.add_supported_context(sop_class, _SYNTAXES)
        handlers: list[Any] = [(evt.EVT_C_STORE, _accept, [inbox])]
        try:
            server: Any = receiver.start_server(("", port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise TransferError(f"Port {port} cannot be listened on; choose another --move-port.") from error
        try:
            entity = self._entity()
            entity.add_requested_context(_STUDY_ROOT_MOVE)
            with self._associated(entity) as association:
                self._check_accepted(association, "C-MOVE")
                advice = "it has to know this program by its title, host and port"
                self._check_moved(association.send_c_move(query, self._peer.own_aet, _STUDY_ROOT_MOVE), advice)
        finally:
            server.shutdown()

    def _check_moved(self, answers: Iterator[tuple[Dataset, Dataset | None]], advice: str) -> None:
        last = Dataset()
        for status, _ in answers:
            last = status
        failed = int(last.get("NumberOfFailedSuboperations") or 0) if last else 0
        if not last or last.Status != _SUCCESS or failed:
            raise TransferError(
                f"{self.name} did not send the whole series (status {_hex(last)}, {failed} objects failed); {advice}."
            )

    def _send(self, association: Association, path: Path) -> bool:
        """Send a file; returns whether the server has it, or False if the connection broke."""
        if not association.is_established:
            return False
        try:
            status = association.send_c_store(read_dicom(path, with_pixels=True))
        except (ValueError, RuntimeError, AttributeError):  # whose messages may quote the object
            raise TransferError(f"{self.name} does not take objects such as {path.name} in their encoding.") from None
        if not status:
            return False
        # 0xBxxx are warnings: it is stored, with some elements changed (PS3.4 B.2.3).
        if status.Status != _SUCCESS and status.Status >> 12 != 0xB:
            raise TransferError(f"{self.name} did not store {path.name} (status {_hex(status)}).")
        return True

    def _check_accepted(self, association: Association, what: str, advice: str = "") -> None:
        roots = (_STUDY_ROOT_FIND, _STUDY_ROOT_MOVE, _STUDY_ROOT_GET)
        if not any(context.abstract_syntax in roots for context in association.accepted_contexts):
            raise TransferError(f"{self.name} does not offer {what}{advice}.")


def _accept(event: Any, inbox: _Inbox) -> int:
    """Take an object that the server sends; it is decoded by whoever waits for it."""
    if inbox.closed.is_set():
        return _OUT_OF_RESOURCES
    dataset = event.dataset
    dataset.file_meta = event.file_meta
    inbox.arrived.put(dataset)
    return _SUCCESS


def _reporting(run: Any, query: Dataset, inbox: _Inbox) -> None:
    """Run an exchange in its thread; its end, or what went wrong, is the last thing that arrives."""
    try:
        run(query, inbox)
    except TransferError as error:
        inbox.arrived.put(error)
    except (InputError, RuntimeError, ValueError, OSError) as error:
        inbox.arrived.put(TransferError(f"The exchange broke off ({type(error).__name__}); try again."))
    else:
        inbox.arrived.put(None)


def _hex(status: Dataset | None) -> str:
    return f"0x{status.Status:04X}" if status and "Status" in status else "none: the connection broke"
