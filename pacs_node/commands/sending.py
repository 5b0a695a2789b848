"""`pacs-node send`: files to a destination by C-STORE, with a progress bar and a summary of what the peer said."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from pacs_node.dimse.storage import find_files, send_files
from pacs_node.errors import ConfigError
from pacs_node.settings import DestinationSettings, Settings

ADDRESS = re.compile(r"(?P<ae_title>[^@\\]{1,16})@(?P<host>[^@\s]+):(?P<port>\d{1,5})")


def destination_of(settings: Settings, to: str) -> DestinationSettings:
    """Return the destination called `to` in the settings, or the one that AET@HOST:PORT spells.

    Raises
    ------
    ConfigError
        Neither.
    """
    named = next((destination for destination in settings.destinations if destination.name == to), None)
    if named is not None:
        if named.kind != "dimse":
            raise ConfigError(f"--to {to!r}: files are sent by C-STORE, and this destination takes STOW-RS")
        return named
    address = ADDRESS.fullmatch(to)
    if address is None or not 0 < int(address["port"]) < 65536:
        names = ", ".join(destination.name for destination in settings.destinations) or "none configured"
        raise ConfigError(f"--to {to!r}: neither a destination of config.toml ({names}) nor AET@HOST:PORT")
    return DestinationSettings(
        name=to[:64], ae_title=address["ae_title"], host=address["host"].strip("[]"), port=int(address["port"])
    )


def send_paths(settings: Settings, paths: Sequence[Path], *, to: str, calling_ae_title: str) -> int:
    """Send every DICOM file among and below `paths`; return 1 if any was not taken, 2 if there was nothing to send.

    Raises
    ------
    ConfigError
        A path does not exist, or `to` is no destination.
    """
    destination = destination_of(settings, to)
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise ConfigError(f"{missing}: no such file or folder")
    files = find_files(paths)
    said: Counter[str] = Counter()
    sending = send_files(
        files,
        destination,
        calling_ae_title=calling_ae_title,
        connect_timeout_s=settings.delivery.connect_timeout_s,
    )
    failed = 0
    for sent in tqdm(sending, total=len(files), unit="file", disable=not sys.stderr.isatty()):
        kind = "sent" if sent.is_sent else "not sent" if sent.is_dicom else "skipped"
        said[f"{kind}: {sent.text}"] += 1
        failed += sent.is_dicom and not sent.is_sent
    for text, count in sorted(said.items()):
        print(f"{count:6}  {text}")
    if not said.total():
        print("nothing to send: no file found", file=sys.stderr)
        return 2
    return 1 if failed else 0
