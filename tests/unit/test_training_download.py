"""Fetching public data from a server on loopback: whole and verified, or not there, and one line that says why."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from training import download
from training.items import DataError

BODY = bytes(range(256)) * 400


class Server(ThreadingHTTPServer):
    """Serves `files` with ranges; can refuse, redirect, or hang up after some bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.status_of: dict[str, int] = {}
        self.redirects: dict[str, str] = {}
        self.cut_after: int | None = None
        self.has_ranges = True
        self.seen: list[tuple[str, str, str]] = []  # path, Range, Authorization
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.partition("?")[0], self.headers.get("Range", "")
        self.server.seen.append((name, asked, self.headers.get("Authorization", "")))
        if name in self.server.redirects:
            self.answer(302, b"", Location=self.server.redirects[name])
        elif name not in self.server.files:
            self.answer(self.server.status_of.get(name, 404), b"")
        else:
            body = self.server.files[name]
            start = int(asked.removeprefix("bytes=").rstrip("-")) if self.server.has_ranges else 0
            if start >= len(body):
                self.answer(416, b"", **{"Content-Range": f"bytes */{len(body)}"})
            else:
                self.answer(206 if self.server.has_ranges else 200, body[start:])

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body if self.server.cut_after is None else body[: self.server.cut_after])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "no kaggle"))
    with Server() as server:
        monkeypatch.setattr(download, "MEDMNIST_URL", f"{server.url}/files/")
        monkeypatch.setattr(download, "KAGGLE_URL", f"{server.url}/kaggle")
        monkeypatch.setitem(download.MEDMNIST_MD5, 28, hashlib.md5(BODY).hexdigest())
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Kaggle's zip in small: one image per folder, a second copy, hidden files, and a name that would climb out."""
    monkeypatch.setattr(download, "KAGGLE_COUNTS", dict.fromkeys(download.KAGGLE_COUNTS, 1))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for folder in download.KAGGLE_COUNTS:
            content.writestr(f"chest_xray/{folder}/person1_virus_1.jpeg", folder * 50)
            content.writestr(f"chest_xray/chest_xray/{folder}/person1_virus_1.jpeg", folder)
            content.writestr(f"chest_xray/__MACOSX/{folder}/._person1_virus_1.jpeg", b"x")
        content.writestr("chest_xray/train/NORMAL/../../../../out.jpeg", b"x")
    return buffer.getvalue()


def run(*arguments: str | Path) -> int:
    return download.main([str(argument) for argument in arguments])


def test_medmnist_is_fetched_once_and_verified(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/files/pneumoniamnist.npz"] = BODY
    for _ in range(2):
        assert run("medmnist", "--to", tmp_path / "data") == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pneumoniamnist.npz"]
    assert (tmp_path / "data/pneumoniamnist.npz").read_bytes() == BODY
    assert len(server.seen) == 1
    assert "pneumoniamnist.npz is complete" in capsys.readouterr().out


def test_published_digests_and_names_are_used(server: Server) -> None:
    assert download.MEDMNIST_MD5[224] == "d6a3c71de1b945ea11211b03746c1fe1"
    with pytest.raises(DataError, match="404"):
        download.fetch_medmnist(Path("nowhere"), 224)
    assert server.seen[0][0] == "/files/pneumoniamnist_224.npz"
    Path("nowhere").rmdir()


@pytest.mark.parametrize("length", [len(BODY) - 1, len(BODY) + 1])
def test_wrong_digest_leaves_nothing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int
) -> None:
    server.files["/files/pneumoniamnist.npz"] = (BODY + b"x")[:length]
    assert run("medmnist", "--to", tmp_path / "data") == 2
    assert "MD5" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_other_file_under_the_name_is_not_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pneumoniamnist.npz").write_bytes(b"mine")
    with pytest.raises(DataError, match="move it away"):
        download.fetch_medmnist(tmp_path, 28)
    assert (tmp_path / "pneumoniamnist.npz").read_bytes() == b"mine"


@pytest.mark.parametrize("has_ranges", [True, False])
def test_broken_off_download_continues_or_starts_again(server: Server, tmp_path: Path, has_ranges: bool) -> None:
    server.files["/files/pneumoniamnist.npz"] = BODY
    server.has_ranges, server.cut_after = has_ranges, 1000
    with pytest.raises(DataError, match=r"broke off \(1000 of 102400 bytes came\); run the same command again"):
        download.fetch_medmnist(tmp_path, 28)
    assert not (tmp_path / "pneumoniamnist.npz").exists()
    server.cut_after = None
    assert download.fetch_medmnist(tmp_path, 28).read_bytes() == BODY
    assert [asked for _, asked, _ in server.seen] == ["bytes=0-", "bytes=1000-"]


def test_whole_partial_file_is_taken_and_a_longer_one_is_not(server: Server, tmp_path: Path) -> None:
    server.files["/files/pneumoniamnist.npz"] = BODY
    partial = tmp_path / "pneumoniamnist.npz.partial"
    partial.write_bytes(BODY + b"x")
    with pytest.raises(DataError, match="does not fit"):
        download.fetch_medmnist(tmp_path, 28)
    assert not partial.exists()
    partial.write_bytes(BODY)
    assert download.fetch_medmnist(tmp_path, 28).read_bytes() == BODY


def test_no_server_is_one_line_that_says_what_to_do(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for host in (f"127.0.0.1:{port}", "no-such-host.invalid"):
        monkeypatch.setattr(download, "MEDMNIST_URL", f"http://{host}/files/")
        assert run("medmnist", "--to", tmp_path) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"download: {host} cannot be reached")
        assert f"put it at {tmp_path / 'pneumoniamnist.npz'}" in lines[0]


def test_kaggle_is_unpacked_without_its_second_copy(
    server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.redirects["/kaggle"] = f"{server.url}/storage"
    server.files["/storage"] = archive
    monkeypatch.setenv("KAGGLE_USERNAME", "user")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    assert run("kaggle", "--to", tmp_path) == 0
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpeg"))
    assert found == sorted(f"chest_xray/{folder}/person1_virus_1.jpeg" for folder in download.KAGGLE_COUNTS)
    assert [authorization for _, _, authorization in server.seen] == ["Basic dXNlcjpzZWNyZXQ=", ""]
    assert run("kaggle", "--to", tmp_path) == 0
    assert len(server.seen) == 2


def test_kaggle_without_a_key_says_where_to_get_one(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("kaggle", "--to", tmp_path) == 2
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "kaggle.json").write_text('{"username": "user"}')
    assert run("kaggle", "--to", tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("no Kaggle key: make one at" in line for line in lines)
    assert server.seen == []


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_is_explained_and_not_shown(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    (tmp_path / "kaggle.json").write_text('{"username": "user", "key": "secret"}')
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    server.status_of["/kaggle"] = status
    assert run("kaggle", "--to", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"refused ({status}): check KAGGLE_USERNAME" in error
    assert "secret" not in error


def test_archive_of_another_content_is_not_unpacked(server: Server, archive: bytes, tmp_path: Path) -> None:
    place = tmp_path / "chest-xray-pneumonia.zip"  # put there by hand: no key and no network needed
    place.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(DataError, match="broken archive"):
        download.fetch_kaggle(tmp_path)
    place.write_bytes(archive.replace(b"test/NORMALtest/NORMAL", b"test/NORMALtest/NORMUL"))
    with pytest.raises(DataError, match="broken archive"):
        download.fetch_kaggle(tmp_path)
    assert not (tmp_path / "chest_xray").exists()
    place.write_bytes(archive)
    assert download.fetch_kaggle(tmp_path) == tmp_path / "chest_xray"
    (tmp_path / "chest_xray/val/NORMAL/person1_virus_1.jpeg").unlink()
    with pytest.raises(DataError, match="val/NORMAL 0 of 1"):
        download.fetch_kaggle(tmp_path)
