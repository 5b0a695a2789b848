"""STOW-RS (PS3.18 10.5): a destination that is reached by HTTP.

Takes files, sends each as it lies on the disk in a request of its own; gives a `StoreResult`, or raises what a failure
means for the work in hand. Hides multipart bodies, HTTP statuses and the Store Instances Response.
"""

from __future__ import annotations

import itertools
import json
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from pydicom.filereader import read_file_meta_info

from pacs_node.dimse.storage import SUCCESS, StoreResult, failure_of
from pacs_node.dimse.tls import doubt_of, https_context
from pacs_node.errors import ConfigError, DeliveryDelayed, DeliveryRejected
from pacs_node.settings import DestinationSettings

CHUNK_BYTES = 1 << 20
ANSWER_BYTES = 1 << 20
"""Of a Store Instances Response about one object: a service that says more is not listened to for ever."""
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses behind which the same request may succeed later (RFC 9110 15, RFC 6585 4)."""
FAILED_SOP_SEQUENCE, FAILURE_REASON = "00081198", "00081197"
STORED, PARTLY_STORED, NOT_STORED = 200, 202, 409
"""Of the Store Instances transaction (PS3.18 Table 10.5.3-1); the last two say more in their bodies."""


class StowSession:
    """One HTTP connection to a STOW-RS service, kept open for a batch; closed at the end of its `with` block.

    Nothing is negotiated: a service says of each object whether it takes it.

    Raises
    ------
    DeliveryDelayed
        The token or a certificate cannot be read now.
    """

    def __init__(
        self, destination: DestinationSettings, *, connect_timeout_s: float, response_timeout_s: float
    ) -> None:
        self._name, self._timeout_s = destination.name, response_timeout_s
        self._url = f"{destination.url.rstrip('/')}/studies"
        self._client = httpx.Client(
            headers=_headers(destination),
            verify=_context(destination),
            timeout=httpx.Timeout(response_timeout_s, connect=connect_timeout_s),
            follow_redirects=False,  # a token must not go where a stranger points
        )

    def __enter__(self) -> StowSession:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def is_open(self) -> bool:
        return not self._client.is_closed

    def accepted_class(self, sop_class_uids: Sequence[str]) -> str | None:
        """Return the first of these SOP Classes: a service tells only by its answer what it takes."""
        return next(iter(sop_class_uids), None)

    def send(self, path: Path, *, is_urgent: bool = False) -> StoreResult:
        """Send one DICOM file.

        Raises
        ------
        DeliveryDelayed
            No connection, no answer, or an answer that another try may change.
        DeliveryRejected
            Any other failure.
        """
        meta = read_file_meta_info(path)
        boundary = uuid4().hex
        part = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        end = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(len(part) + path.stat().st_size + len(end)),
        }
        try:
            body = itertools.chain([part], _chunks(path), [end])
            with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                status, told = answer.status_code, self._body_of(answer)
        except httpx.HTTPError as error:
            self._client.close()  # what follows in this batch is given back without counting
            raise DeliveryDelayed(self._name, f"STOW-RS: {_why(error)}") from error
        self._raise_for(status, told)
        return StoreResult(
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            status=SUCCESS,
        )

    def _body_of(self, answer: httpx.Response) -> bytes:
        body, deadline = bytearray(), time.monotonic() + self._timeout_s
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > ANSWER_BYTES or time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer does not end")
        return bytes(body)

    def _raise_for(self, status: int, told: bytes) -> None:
        """Say what an answer means for the work in hand (PS3.18 10.5.3)."""
        text = f"STOW-RS answered {status}"
        if status in TRY_AGAIN:
            raise DeliveryDelayed(self._name, text)
        reasons = _failure_reasons(told) if status in (STORED, PARTLY_STORED, NOT_STORED) else None
        for reason in reasons or ():
            failure = failure_of(reason, self._name, f"{text}, failure reason {reason:04X}")
            if failure is not None:
                raise failure
        is_stored = status == STORED or (status == PARTLY_STORED and reasons is not None)
        if not is_stored and not reasons:  # a conflict whose every reason means that the service has it is none
            raise DeliveryRejected(self._name, text)


def _failure_reasons(body: bytes) -> list[int] | None:
    """Return the Failure Reasons of a Store Instances Response (PS3.18 I.2); None if it cannot be read."""
    try:
        told: Any = json.loads(body)
        told = told[0] if isinstance(told, list) else told
        items = told.get(FAILED_SOP_SEQUENCE, {}).get("Value", [])
        return [int(item[FAILURE_REASON]["Value"][0]) for item in items]
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, OverflowError, RecursionError):
        return None


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _why(error: httpx.HTTPError) -> str:
    """Return the kind of error, or what TLS says where that lies below (a service that does not believe us says it)."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__context__
    return doubt_of(cause) if cause else type(error).__name__


def _context(destination: DestinationSettings) -> ssl.SSLContext:
    try:
        return https_context(destination)
    except ConfigError as error:
        raise DeliveryDelayed(destination.name, str(error)) from error


def _headers(destination: DestinationSettings) -> dict[str, str]:
    headers = {"Accept": "application/dicom+json"}
    if destination.token_file is not None:
        try:
            token = destination.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DeliveryDelayed(destination.name, f"token_file {destination.token_file} cannot be read") from error
        headers["Authorization"] = f"Bearer {token}"
    return headers
