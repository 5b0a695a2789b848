"""A file has its final name only once all its bytes are on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from pacs_node import store as store_module
from pacs_node.listener.header import encode_file_meta
from pacs_node.store import QUARANTINE, ObjectStore, data_set_offset
from tests.builders import as_bytes, make_radiograph

META = encode_file_meta("1.2.840.10008.5.1.4.1.1.1", "1.2.3", "1.2.840.10008.1.2.1", "CR_ROOM_1")


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_keep_gives_the_bytes_a_key_of_ours_and_the_digest_of_the_data_set(store: ObjectStore, tmp_path: Path) -> None:
    with store.begin() as part:
        part.write_meta(META)
        part.write(b"one")
        part.write(b"two")
        stored = part.keep()
    assert store.absolute(stored.path).read_bytes() == META + b"onetwo"
    assert stored.digest == hashlib.sha256(b"onetwo").hexdigest()
    assert stored.size_bytes == len(META) + 6
    assert files_below(tmp_path / "store") == [stored.path]
    assert stored.path.startswith("instances/")
    assert stored.path.endswith(".dcm")


def test_place_digests_a_part_10_file_without_its_file_meta(store: ObjectStore) -> None:
    content = as_bytes(make_radiograph(rows=16, columns=16))
    offset = data_set_offset(content)
    stored = store.place([content[:1000], content[1000:]])
    assert 132 < offset < 1000
    assert stored.digest == hashlib.sha256(content[offset:]).hexdigest()
    with store.open(stored.path) as file:
        assert file.read() == content


@pytest.mark.parametrize("head", [b"", b"GIF89a", bytes(200), bytes(128) + b"DICM\x02\x00\x00\x00UL"])
def test_data_set_offset_is_zero_when_there_is_no_file_meta(head: bytes) -> None:
    assert data_set_offset(head) == 0


def test_a_part_that_is_not_kept_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    with store.begin() as part:
        part.write(b"half an ima")
        assert len(files_below(tmp_path / "store")) == 1
    assert files_below(tmp_path / "store") == []
    part.discard()


def test_every_byte_is_on_the_disk_before_the_name_and_the_name_before_keep_returns(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        steps.append("fsync " + ("folder" if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir() else "file"))
        fsync(descriptor)

    def recorded_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    store.place([b"first"])
    assert steps == ["fsync folder"] * 3 + ["fsync file", "rename", "fsync folder"]  # the first three: once only
    steps.clear()
    store.place([b"second"])
    assert steps == ["fsync file", "rename", "fsync folder"]


def test_keep_leaves_nothing_when_the_disk_fails(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "broken disk")

    part = store.begin()
    part.write(b"bytes")
    store.place([b"the folders are there now"])
    before = files_below(tmp_path / "store")
    monkeypatch.setattr(store_module, "fsync_folder", fail)
    with pytest.raises(OSError, match="broken disk"):
        part.keep()
    assert set(files_below(tmp_path / "store")) < set(before)


def test_stored_files_are_ours_alone(store: ObjectStore) -> None:
    path = store.absolute(store.place([b"a patient's image"]).path)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_delete_is_content_when_the_file_is_gone(store: ObjectStore) -> None:
    stored = store.place([b"x"])
    store.delete(stored.path)
    store.delete(stored.path)
    assert not store.absolute(stored.path).exists()


def test_sweep_incoming_takes_what_a_dead_process_left_and_nothing_that_is_being_written(store: ObjectStore) -> None:
    dead, alive = store.begin(), store.begin()
    os.utime(dead.path, (time.time() - 100, time.time() - 100))
    assert store.sweep_incoming(older_than_s=50) == 1
    assert not dead.path.exists()
    assert alive.path.exists()


def test_iterate_yields_old_objects_of_every_area_and_nothing_that_is_incoming(store: ObjectStore) -> None:
    old = store.place([b"old"]).path
    with store.begin() as part:
        part.write(b"not readable")
        quarantined = part.keep(QUARANTINE).path
    for path in (old, quarantined):
        os.utime(store.absolute(path), (time.time() - 100, time.time() - 100))
    new, incoming = store.place([b"new"]).path, store.begin()
    assert set(store.iterate(older_than_s=50)) == {old, quarantined}
    assert set(store.iterate(older_than_s=-1)) == {old, quarantined, new}
    incoming.discard()


def test_free_bytes_is_what_the_file_system_says(store: ObjectStore, tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert store.free_bytes() == pytest.approx(status.f_bavail * status.f_frsize, rel=0.1)
