"""Fetch a public data set: `python -m training.download kaggle|medmnist --to DIR`.

kaggle: "Chest X-Ray Images (Pneumonia)" of Kermany et al. (CC BY 4.0), original resolution, a zip of about 2.3 GB, with
the official train, val and test folders; gives `DIR/chest_xray`. Needs a Kaggle key. medmnist: PneumoniaMNIST (CC BY
4.0), the same radiographs at 28 to 224 px; gives `DIR/pneumoniamnist.npz`. Never train on one and judge on the other.

A download that broke off continues where it stopped; what comes out is whole and verified, or is not there.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from training.items import DataError

KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/paultimothymooney/chest-xray-pneumonia"
KAGGLE_COUNTS = {
    "train/NORMAL": 1341,
    "train/PNEUMONIA": 3875,
    "val/NORMAL": 8,
    "val/PNEUMONIA": 8,
    "test/NORMAL": 234,
    "test/PNEUMONIA": 390,
}
MEDMNIST_URL = "https://zenodo.org/records/10519652/files/"
MEDMNIST_MD5 = {  # by size in pixels; published with the MedMNIST package (medmnist/info.py)
    28: "28209eda62fecd6e6a2d98b1501bb15f",
    64: "8f4eceb4ccffa70c672198ea285246c6",
    128: "05b46931834c231683c68f40c47b2971",
    224: "d6a3c71de1b945ea11211b03746c1fe1",
}
_MEMBER = re.compile(r"chest_xray/((?:train|val|test)/(?:NORMAL|PNEUMONIA))/([\w-]+\.jpe?g)")
_CHUNK = 1 << 20  # bytes
_TIMEOUT_S = 60
_KEY_HELP = (
    "no Kaggle key: make one at https://www.kaggle.com/settings (API, Create New Token), then set KAGGLE_USERNAME and "
    "KAGGLE_KEY, or put kaggle.json into ~/.kaggle"
)


def fetch_medmnist(folder: Path, size: int) -> Path:
    """Return `folder/pneumoniamnist.npz` (or `pneumoniamnist_SIZE.npz`), fetched if it is not there, and verified."""
    name = "pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz"
    target = folder / name
    if not target.exists():
        partial = fetch(f"{MEDMNIST_URL}{name}?download=1", target)
        if (found := _md5_of(partial)) != MEDMNIST_MD5[size]:
            partial.unlink()
            raise DataError(f"{name}: MD5 {found}, but {MEDMNIST_MD5[size]} is published; deleted, run again")
        partial.replace(target)
    elif (found := _md5_of(target)) != MEDMNIST_MD5[size]:
        raise DataError(f"{target} is there, but its MD5 is {found}, not {MEDMNIST_MD5[size]}; move it away")
    return target


def fetch_kaggle(folder: Path) -> Path:
    """Return `folder/chest_xray`, fetched and unpacked if it is not there, with every image counted."""
    target, archive = folder / "chest_xray", folder / "chest-xray-pneumonia.zip"
    if not target.exists():
        if not archive.exists():
            username, key = _kaggle_key()
            authorization = base64.b64encode(f"{username}:{key}".encode()).decode()
            fetch(KAGGLE_URL, archive, authorization=f"Basic {authorization}").replace(archive)
        unpacked = folder / "chest_xray.partial"
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            _unpack(archive, unpacked)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{archive}: broken archive ({error}); delete it and run again") from error
        _check_counts(unpacked)
        unpacked.replace(target)
    _check_counts(target)
    return target


def fetch(url: str, target: Path, *, authorization: str = "") -> Path:
    """Download to `target` with `.partial` behind its name, continuing what is there, and return that path.

    Raises
    ------
    DataError
        The server cannot be reached, refuses, or breaks off.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "pacs-node", "Range": f"bytes={done}-"})
    if authorization:  # for this host alone: the storage that it redirects to refuses a second authorization
        request.add_unredirected_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            _save(response, partial, done if response.status == 206 else 0)
    except urllib.error.HTTPError as error:
        return _refused(error, partial, done, needs_key=bool(authorization))
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise DataError(_network_help(url, target, getattr(error, "reason", None) or error)) from error
    return partial


def _refused(error: urllib.error.HTTPError, partial: Path, done: int, *, needs_key: bool) -> Path:
    """Return the file if the server only says that nothing is missing; else raise what a user can act on."""
    if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{done}"):
        return partial
    if error.code == 416:
        partial.unlink(missing_ok=True)
        raise DataError(f"{partial.name} does not fit the file on the server; deleted, run again") from error
    if needs_key and error.code in (401, 403):
        reason = "check KAGGLE_USERNAME and KAGGLE_KEY (or kaggle.json), and accept the data set's terms on its page"
        raise DataError(f"the server refused ({error.code}): {reason}") from error
    raise DataError(f"the server answered {error.code} {error.reason}; try again later: {error.url}") from error


def _network_help(url: str, target: Path, reason: object) -> str:
    host = url.split("/")[2]
    return (
        f"{host} cannot be reached, or broke off ({reason}); run the same command again to continue, "
        f"or fetch {url} on a machine with a network and put it at {target}"
    )


def _save(response: HTTPResponse, partial: Path, done: int) -> None:
    """Append the answer's body from byte `done` on; fail if it is shorter than announced."""
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    with (
        partial.open("r+b" if done else "wb") as file,
        tqdm(desc=partial.stem, total=total, initial=done, unit="B", unit_scale=True) as bar,
    ):
        file.seek(done)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        if total is not None and file.tell() < total:
            raise ConnectionError(f"{file.tell()} of {total} bytes came")


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _kaggle_key() -> tuple[str, str]:
    """Return user name and key from the environment, or from kaggle.json where Kaggle's own tool looks for it."""
    username, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if username and key:
        return username, key
    file = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle")) / "kaggle.json"
    try:
        values = json.loads(file.read_text())
        return str(values["username"]), str(values["key"])
    except FileNotFoundError:
        raise DataError(_KEY_HELP) from None
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(f"{file}: not a Kaggle key file; {_KEY_HELP}") from None


def _unpack(archive: Path, folder: Path) -> None:
    """Write the images of the three official folders; the archive's second copy and its hidden files are left."""
    with zipfile.ZipFile(archive) as content:
        members = [(name, found) for name in content.namelist() if (found := _MEMBER.fullmatch(name))]
        for name, found in tqdm(members, desc="unpacking", unit="img"):
            path = folder / found[1] / found[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read(name))  # checks the CRC


def _check_counts(folder: Path) -> None:
    found = Counter({name: len(list((folder / name).glob("*.jp*g"))) for name in KAGGLE_COUNTS})
    wrong = [f"{name} {found[name]} of {count}" for name, count in KAGGLE_COUNTS.items() if found[name] != count]
    if wrong:
        raise DataError(f"{folder}: images are missing or too many: {', '.join(wrong)}; delete it and run again")


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line where the data cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m training.download", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["kaggle", "medmnist"])
    parser.add_argument("--to", type=Path, required=True, help="folder, made if need be")
    parser.add_argument("--size", type=int, choices=sorted(MEDMNIST_MD5), default=28, help="medmnist: pixels")
    options = parser.parse_args(arguments)
    try:
        path = fetch_kaggle(options.to) if options.what == "kaggle" else fetch_medmnist(options.to, options.size)
    except (DataError, OSError) as error:
        print(f"download: {error}", file=sys.stderr)
        return 2
    print(f"{path} is complete and verified: python -m training.train --data {path} ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
