"""Objects as files under names of ours; a file has its final name only once all its bytes are on the disk.

Takes bytes as they arrive, gives a key, a digest and a size; hides folders, temporary names and the order of fsync and
rename. A file grows as `incoming/<uuid>.part` and is renamed to `<area>/<2 hex digits>/<uuid>.dcm`: a crash leaves a
`.part` file or an object that no row names, never half an object under a final name. Images belong to patients: only
our own user can read them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

INCOMING, INSTANCES, QUARANTINE = "incoming", "instances", "quarantine"
PART_SUFFIX = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that will outlive a power cut."""

    path: str
    """Key in the store."""
    digest: str
    """SHA-256 of the data set without its file meta, in hexadecimal."""
    size_bytes: int
    """Of the whole file."""


class _Folders:
    """The folders below `root`, made once so that no object waits for its own to be written to the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable: set[str] = set()

    def make(self, area: str) -> None:
        """Make the folders of an area; fsync also where another process made them, which may not have yet."""
        if area in self._durable:
            return
        folder = self.root / area
        for first in range(256):
            (folder / f"{first:02x}").mkdir(parents=True, exist_ok=True, mode=0o700)
        for made_in in (folder, self.root, self.root.parent):
            fsync_folder(made_in)
        self._durable.add(area)


class Part:
    """A file that still grows. Without `keep` nothing remains of it."""

    def __init__(self, folders: _Folders) -> None:
        self._folders = folders
        self._id = uuid4().hex
        self.path = folders.root / INCOMING / f"{self._id}{PART_SUFFIX}"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self._meta_bytes = 0
        self.size_bytes = 0

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write_meta(self, meta: bytes) -> None:
        """Append preamble and file meta information, which the digest does not cover."""
        self._append(meta)
        self._meta_bytes += len(meta)

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes of the data set."""
        self._append(chunk)
        self._hash.update(chunk)

    def _append(self, chunk: bytes | memoryview) -> None:
        written = os.write(self._file, chunk)
        while written < len(chunk):
            written += os.write(self._file, memoryview(chunk)[written:])
        self.size_bytes += len(chunk)

    def data_set(self) -> BinaryIO:
        """Open for reading what was written so far, at the beginning of the data set."""
        file = self.path.open("rb")
        file.seek(self._meta_bytes)
        return file

    def keep(self, area: str = INSTANCES, suffix: str = ".dcm") -> StoredFile:
        """Give the file its final name; once this returns, a power cut cannot take it.

        Raises
        ------
        OSError
            The disk is full or faulty; nothing remains.
        """
        key = f"{area}/{self._id[:2]}/{self._id}{suffix}"
        final = self._folders.root / key
        try:
            self._folders.make(area)
            # fsync before rename: after a power cut the name must never point at missing bytes.
            os.fsync(self._file)
            self.path.rename(final)
            fsync_folder(final.parent)
        except OSError:
            final.unlink(missing_ok=True)
            raise
        finally:
            self.discard()
        return StoredFile(path=key, digest=self._hash.hexdigest(), size_bytes=self.size_bytes)

    def discard(self) -> None:
        """Delete what was written; does nothing the second time, nor after `keep`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.path.unlink(missing_ok=True)


class ObjectStore:
    """Every object of one node, below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders = _Folders(root)
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        (root / INCOMING).mkdir(exist_ok=True, mode=0o700)

    def begin(self) -> Part:
        """Open a new file to be written chunk by chunk."""
        return Part(self._folders)

    def place(self, chunks: Iterable[bytes], *, suffix: str = ".dcm") -> StoredFile:
        """Store one object; a Part 10 header, if there is one, must lie within the first chunk.

        Raises
        ------
        OSError
            The disk is full or faulty; nothing remains.
        """
        with self.begin() as part:
            remaining = iter(chunks)
            first = next(remaining, b"")
            offset = data_set_offset(first)
            part.write_meta(first[:offset])
            part.write(memoryview(first)[offset:])
            for chunk in remaining:
                part.write(chunk)
            return part.keep(suffix=suffix)

    def absolute(self, path: str) -> Path:
        return self._root / path

    def open(self, path: str) -> BinaryIO:
        return self.absolute(path).open("rb")

    def delete(self, path: str) -> None:
        """Delete an object; it may be gone already."""
        self.absolute(path).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._root).free

    def sweep_incoming(self, *, older_than_s: float) -> int:
        """Delete files that nobody has written to for `older_than_s`: their process is dead. Return how many."""
        stale = [path for path in (self._root / INCOMING).glob(f"*{PART_SUFFIX}") if _age_s(path) > older_than_s]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def iterate(self, *, older_than_s: float) -> Iterator[str]:
        """Yield the keys of all objects written longer ago than `older_than_s`."""
        for area in (INSTANCES, QUARANTINE):
            for path in (self._root / area).glob("*/*"):
                if _age_s(path) > older_than_s:
                    yield path.relative_to(self._root).as_posix()


def data_set_offset(head: bytes) -> int:
    """Return where the data set begins in a Part 10 file; 0 if `head` has no file meta (PS3.10 7.1).

    Parameters
    ----------
    head
        The beginning of the file, 144 bytes or more.
    """
    if head[128:138] != b"DICM\x02\x00\x00\x00UL" or len(head) < 144:
        return 0
    (group_length,) = struct.unpack_from("<L", head, 140)
    return int(144 + group_length)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # another process was quicker
        return -1.0
