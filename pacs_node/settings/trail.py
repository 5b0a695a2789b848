"""Which keys of the configuration changed since the last start, for the audit trail; never their values.

The settings in force are kept as salted digests, key by key, in `data_dir/settings.digests`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from typing import Any

from pacs_node.settings import Settings

FILE = "settings.digests"


def changed_keys(settings: Settings) -> list[str]:
    """Return the dotted names of keys that differ from the last call for this data folder, and keep today's.

    The first call returns nothing: there is nothing to compare with.
    """
    path = settings.node.data_dir / FILE
    known = json.loads(path.read_text(encoding="ascii")) if path.exists() else {}
    salt = str(known.pop("salt", "") or secrets.token_hex(16))
    leaves = _leaves(settings.model_dump(mode="json"), "")
    now = {name: hashlib.sha256(f"{salt}{value!r}".encode()).hexdigest() for name, value in leaves}
    path.write_text(json.dumps({"salt": salt, **now}), encoding="ascii")
    return sorted(name for name in known.keys() | now.keys() if known.get(name) != now.get(name)) if known else []


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{name}.{key}" if name else key)
