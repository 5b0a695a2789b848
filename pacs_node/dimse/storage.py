"""What this node sends to another DICOM application: C-ECHO and C-STORE.

Takes a destination and files, sends their bytes as they lie on the disk; gives a `StoreResult`, or raises what a
failure means for the work in hand (`errors`). Hides pynetdicom's SCU, negotiation and the statuses of PS3.4 B.2.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import _config, build_context

from pacs_node.conformance import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    UNCOMPRESSED_TRANSFER_SYNTAXES,
    VERIFICATION,
)
from pacs_node.dimse.association import CONNECT_TIMEOUT_S, RESPONSE_TIMEOUT_S, associate, words_of
from pacs_node.errors import DeliveryDelayed, DeliveryFailed, DeliveryRejected
from pacs_node.settings import DestinationSettings

_config.STORE_SEND_CHUNKED_DATASET = True  # a path is sent as the bytes it holds, never decoded and encoded again

MAXIMUM_CONTEXTS = 128
"""In one association (PS3.8 9.3.2.2: odd numbers from 1 to 255)."""
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
"""A DICOMDIR is a file of the Standard's, not an object to be stored."""
HIGH_PRIORITY, MEDIUM_PRIORITY = 1, 0
"""Of a C-STORE (PS3.7 9.1.1.1)."""

SUCCESS = 0x0000
WARNINGS = range(0xB000, 0xC000)
"""Stored, with something coerced or discarded (PS3.4 Table B.2-1)."""
DUPLICATE_INSTANCE = 0x0111
"""The peer has it already (PS3.7 C.5.6)."""
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = range(0xA700, 0xA800)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """The peer has the object."""

    sop_class_uid: str
    sop_instance_uid: str
    status: int
    """Success, or a warning (PS3.4 B.2.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """What became of one file of `send_files`."""

    path: Path
    is_dicom: bool
    """False: skipped."""
    is_sent: bool
    text: str
    """For a person: the status, or why not."""


def echo(destination: DestinationSettings, *, calling_ae_title: str, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Ask a peer whether it is there (C-ECHO, PS3.4 A).

    Raises
    ------
    DeliveryDelayed, DeliveryRejected
        It is not, or does not know us.
    """
    context = build_context(VERIFICATION, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
    association = associate(destination, calling_ae_title, [context], timeout_s, timeout_s)
    try:
        status = association.send_c_echo().get("Status")
    finally:
        association.release()
    if status != SUCCESS:
        raise DeliveryDelayed(destination.name, f"C-ECHO answered {_hex(status)}")


class SendSession:
    """One association as storage SCU, kept open for a batch; released at the end of its `with` block.

    Parameters
    ----------
    contexts
        (SOP Class UID, transfer syntax UID) pairs, each proposed as a presentation context of its own, so that the peer
        says yes or no to each.

    Raises
    ------
    DeliveryDelayed
        No connection, no answer, or rejected for now.
    DeliveryRejected
        The peer does not know us or accepts none of the contexts.
    """

    def __init__(
        self,
        destination: DestinationSettings,
        contexts: Iterable[tuple[str, str]],
        *,
        calling_ae_title: str,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        response_timeout_s: float = RESPONSE_TIMEOUT_S,
    ) -> None:
        self._name = destination.name
        proposed = [build_context(sop_class, transfer_syntax) for sop_class, transfer_syntax in contexts]
        self._association = associate(destination, calling_ae_title, proposed, connect_timeout_s, response_timeout_s)
        self._accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in self._association.accepted_contexts
        }

    def __enter__(self) -> SendSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the association; does nothing when the peer ended it."""
        self._association.release()

    @property
    def is_open(self) -> bool:
        return bool(self._association.is_established)

    def accepts(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        return (sop_class_uid, transfer_syntax_uid) in self._accepted

    def accepted_class(self, sop_class_uids: Sequence[str]) -> str | None:
        """Return the first of these SOP Classes that the peer accepted, in any transfer syntax; None if none."""
        accepted = {sop_class for sop_class, _ in self._accepted}
        return next((uid for uid in sop_class_uids if uid in accepted), None)

    def send(self, path: Path, *, is_urgent: bool = False) -> StoreResult:
        """Send one Part 10 file by C-STORE.

        Its bytes go out as they are; only an uncompressed data set whose transfer syntax the peer did not accept is
        encoded again, in one it did.

        Raises
        ------
        DeliveryDelayed
            The association is lost, no answer, or A7xx or 0110: another try may do.
        DeliveryRejected
            No presentation context, or any other failure status.
        """
        meta = read_file_meta_info(path)
        sop_class, transfer_syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
        if self.accepts(sop_class, transfer_syntax):
            content: Any = path
        elif transfer_syntax in UNCOMPRESSED_TRANSFER_SYNTAXES and self._accepts_uncompressed(sop_class):
            content = dcmread(path)
        else:
            text = f"no presentation context for {UID(sop_class).name} in {UID(transfer_syntax).name}"
            raise DeliveryRejected(self._name, text)
        try:
            answer = self._association.send_c_store(content, priority=HIGH_PRIORITY if is_urgent else MEDIUM_PRIORITY)
        except (RuntimeError, OSError) as error:  # pynetdicom: the association is over
            raise DeliveryDelayed(self._name, "the association was lost") from error
        except ValueError as error:
            raise DeliveryRejected(self._name, "the object cannot be encoded for the accepted context") from error
        self._raise_for(answer.get("Status"), words_of(answer.get("ErrorComment")))
        return StoreResult(
            sop_class_uid=sop_class, sop_instance_uid=str(meta.MediaStorageSOPInstanceUID), status=answer.Status
        )

    def _accepts_uncompressed(self, sop_class_uid: str) -> bool:
        return any(
            self.accepts(sop_class_uid, syntax) for syntax in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
        )

    def _raise_for(self, status: int | None, comment: str) -> None:
        """Say what a C-STORE status means for the work in hand (PS3.4 B.2.3, PS3.7 C)."""
        if status is None:
            self._association.abort()  # pynetdicom may not have noticed yet that the peer is gone
            raise DeliveryDelayed(self._name, "no answer to C-STORE")
        text = f"C-STORE answered {_hex(status)}" + (f": {comment}" if comment else "")
        failure = failure_of(status, self._name, text)
        if failure is not None:
            raise failure


def failure_of(status: int, destination: str, text: str) -> DeliveryFailed | None:
    """Return what a storage status means for the work in hand (PS3.4 B.2.3, PS3.7 C); None: the peer has the object."""
    if status in (SUCCESS, DUPLICATE_INSTANCE) or status in WARNINGS:
        return None
    if status in OUT_OF_RESOURCES or status == PROCESSING_FAILURE:
        return DeliveryDelayed(destination, text)
    return DeliveryRejected(destination, text)


def send_files(
    paths: Sequence[Path],
    destination: DestinationSettings,
    *,
    calling_ae_title: str,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> Iterator[SentFile]:
    """Send files, each as it is; yield what became of each, in the order in which they are sent.

    What is no DICOM file is skipped. A lost association is opened again for the next file.
    """
    batches: list[tuple[dict[tuple[str, str], None], list[Path]]] = [({}, [])]
    for path in paths:
        contexts = _contexts_for(path)
        if not contexts:
            yield SentFile(path=path, is_dicom=False, is_sent=False, text="not a DICOM object")
            continue
        if len(batches[-1][0] | contexts) > MAXIMUM_CONTEXTS:
            batches.append(({}, []))
        batches[-1][0].update(contexts)
        batches[-1][1].append(path)
    for proposed, batch in batches:
        session: SendSession | None = None
        for path in batch:
            try:
                if session is None or not session.is_open:
                    session = SendSession(
                        destination,
                        proposed,
                        calling_ae_title=calling_ae_title,
                        connect_timeout_s=connect_timeout_s,
                    )
                result = session.send(path)
            except (DeliveryDelayed, DeliveryRejected) as failure:
                yield SentFile(path=path, is_dicom=True, is_sent=False, text=failure.reason)
            else:
                yield SentFile(path=path, is_dicom=True, is_sent=True, text=_hex(result.status))
        if session is not None:
            session.close()


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths` and below the folders among them, in order of their names."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def _contexts_for(path: Path) -> dict[tuple[str, str], None]:
    """Return the contexts to propose for a file, as an ordered set; none if it is no DICOM object."""
    try:
        meta = read_file_meta_info(path)
        sop_class, transfer_syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except Exception:  # noqa: BLE001 - any file may lie in a folder; the parser may raise anything about it
        return {}
    if sop_class == MEDIA_DIRECTORY:
        return {}
    contexts = {(sop_class, transfer_syntax): None}
    if transfer_syntax in UNCOMPRESSED_TRANSFER_SYNTAXES:
        contexts |= {(sop_class, EXPLICIT_VR_LITTLE_ENDIAN): None, (sop_class, IMPLICIT_VR_LITTLE_ENDIAN): None}
    return contexts


def _hex(status: int | None) -> str:
    return "nothing" if status is None else f"{status:04X}"
