"""STOW-RS against a real server on loopback that answers as told."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pacs_node.delivery import stow
from pacs_node.delivery.stow import StowSession
from pacs_node.errors import DeliveryDelayed, DeliveryRejected
from pacs_node.settings import DestinationSettings
from tests.acceptance.certificates import Authority, Certificate
from tests.builders import make_radiograph, save


class Service(ThreadingHTTPServer):
    """Keeps what it is sent; answers with `status` and the Failure Reasons given."""

    status = 200
    reasons: tuple[int, ...] = ()
    body: bytes | None = None
    scheme = "http"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    def answer(self) -> bytes:
        if self.body is not None:
            return self.body
        failed = [{"00081197": {"vr": "US", "Value": [reason]}} for reason in self.reasons]
        return json.dumps({"00081198": {"vr": "SQ", "Value": failed}} if failed else {}).encode()

    def speak_tls(self, own: Certificate, *, asks_for_certificate: bool = False) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own.certificate, own.private_key)
        if asks_for_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(own.ca)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https"

    def handle_error(self, *_: object) -> None:
        """Say nothing on the terminal of a handshake that failed."""

    def destination(self, **more: Any) -> DestinationSettings:
        url = f"{self.scheme}://127.0.0.1:{self.server_port}/dicom-web/"
        return DestinationSettings(**{"name": "web", "kind": "stow", "url": url} | more)


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), content))
        self.send_response(self.server.status)
        answer = self.server.answer()
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(make_radiograph(rows=32, columns=32), tmp_path / "image.dcm")


def send(destination: DestinationSettings, file: Path) -> None:
    with StowSession(destination, connect_timeout_s=2, response_timeout_s=5) as session:
        session.send(file)


def test_file_goes_byte_for_byte_as_one_part_with_its_token(service: Service, file: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    send(service.destination(token_file=tmp_path / "token"), file)
    ((path, headers, content),) = service.requests
    boundary = headers["Content-Type"].partition("boundary=")[2].encode()
    head, _, rest = content.partition(b"\r\n\r\n")
    assert path == "/dicom-web/studies"
    assert headers["Authorization"] == "Bearer secret"
    assert head == b"--" + boundary + b"\r\nContent-Type: application/dicom"
    assert rest == file.read_bytes() + b"\r\n--" + boundary + b"--\r\n"


@pytest.mark.parametrize(
    ("status", "reasons", "outcome"),
    [
        (200, (), None),
        (202, (), None),
        (409, (0x0111,), None),
        (409, (0xA700,), DeliveryDelayed),
        (202, (0x0110,), DeliveryDelayed),
        (503, (), DeliveryDelayed),
        (429, (), DeliveryDelayed),
        (409, (0x0122,), DeliveryRejected),
        (202, (0xC000,), DeliveryRejected),
        (409, (), DeliveryRejected),
        (400, (), DeliveryRejected),
        (401, (), DeliveryRejected),
        (302, (), DeliveryRejected),
    ],
)
def test_each_answer_stores_delays_or_rejects(
    service: Service, file: Path, status: int, reasons: tuple[int, ...], outcome: type[Exception] | None
) -> None:
    service.status, service.reasons = status, reasons
    if outcome is None:
        send(service.destination(), file)
        return
    with pytest.raises(outcome, match=str(status)):
        send(service.destination(), file)


def test_answer_that_is_no_json_counts_by_its_status_alone(service: Service, file: Path) -> None:
    service.body = b"<NativeDicomModel/>"
    send(service.destination(), file)
    service.status = 202
    with pytest.raises(DeliveryRejected, match="202"):
        send(service.destination(), file)


def test_failure_reason_that_is_no_number_counts_as_none(service: Service, file: Path) -> None:
    service.status, service.body = 409, b'{"00081198": {"Value": [{"00081197": {"Value": [Infinity]}}]}}'
    with pytest.raises(DeliveryRejected, match="409"):
        send(service.destination(), file)


def test_answer_that_does_not_end_delays_and_closes_the_session(
    service: Service, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow, "ANSWER_BYTES", 1000)
    service.body = b" " * 1001
    with StowSession(service.destination(), connect_timeout_s=2, response_timeout_s=5) as session:
        with pytest.raises(DeliveryDelayed, match="ReadTimeout"):
            session.send(file)
        assert not session.is_open


def test_service_that_is_away_delays_and_closes_the_session(file: Path) -> None:
    destination = DestinationSettings(name="web", kind="stow", url="http://127.0.0.1:9/dicom-web")
    with StowSession(destination, connect_timeout_s=1, response_timeout_s=1) as session:
        with pytest.raises(DeliveryDelayed, match="ConnectError"):
            session.send(file)
        assert not session.is_open


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


def test_service_of_a_private_authority_is_believed_by_tls_ca_alone(
    service: Service, file: Path, authority: Authority, tmp_path: Path
) -> None:
    service.speak_tls(authority.sign("pacs"))
    send(service.destination(tls_ca=authority.certificate), file)
    stranger = Authority(tmp_path / "other", "stranger")
    with pytest.raises(DeliveryDelayed, match=r"STOW-RS: its certificate is not believed: .*certificate"):
        send(service.destination(tls_ca=stranger.certificate), file)
    assert len(service.requests) == 1


def test_certificate_that_names_another_host_is_not_believed(
    service: Service, file: Path, authority: Authority
) -> None:
    service.speak_tls(authority.sign("pacs", "DNS:pacs.example.org"))
    with pytest.raises(DeliveryDelayed, match="not believed: IP address mismatch"):
        send(service.destination(tls_ca=authority.certificate), file)


def test_service_that_asks_for_a_certificate_is_shown_ours(service: Service, file: Path, authority: Authority) -> None:
    service.speak_tls(authority.sign("pacs"), asks_for_certificate=True)
    send(service.destination(**authority.sign("node").settings()), file)
    with pytest.raises(DeliveryDelayed, match="STOW-RS"):
        send(service.destination(tls_ca=authority.certificate), file)
    assert len(service.requests) == 1


def test_without_tls_ca_the_systems_authorities_are_believed_and_no_others(
    service: Service, file: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.speak_tls(authority.sign("pacs"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setattr("certifi.where", lambda: pytest.fail("a bundle of its own"))
    with pytest.raises(DeliveryDelayed, match="not believed"):
        send(service.destination(), file)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))  # where OpenSSL looks for the system's
    send(service.destination(), file)


@pytest.mark.parametrize(
    ("scheme", "key", "why"),
    [
        ("https", "tls_ca", "destination web: tls_ca .*secret: No such file"),
        ("http", "token_file", "token_file .*secret cannot be read"),
    ],
)
def test_file_that_cannot_be_read_now_delays_and_is_named(
    service: Service, tmp_path: Path, scheme: str, key: str, why: str
) -> None:
    service.scheme = scheme
    with pytest.raises(DeliveryDelayed, match=why):
        StowSession(service.destination(**{key: tmp_path / "secret"}), connect_timeout_s=1, response_timeout_s=1)
