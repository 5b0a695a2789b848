"""How much one client may ask in a minute; counted in this process, over a moving window.

A node has one web process. Where several machines each run one, an address has its share at each; wrong passwords for
an account are counted in the database, for all of them together.
"""

from __future__ import annotations

import hashlib
import math
import time
from datetime import UTC, datetime

from fastapi import HTTPException
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from pacs_node.settings.web import WebSettings
from pacs_node.web.access import Visitor

PREDICTIONS, LOGINS = "predictions", "logins"
UNKNOWN_MAX = 10_000


class Limits:
    """The counters of the web process; an address that is not known to be of a proxy's client is the connection's."""

    def __init__(self, settings: WebSettings) -> None:
        self._tries, self._rest_s = settings.login_tries, 60 * settings.login_rest_minutes
        self._unknown: dict[bytes, tuple[int, float]] = {}
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._logins = RateLimitItemPerMinute(settings.logins_per_minute)
        self._predictions = (
            RateLimitItemPerMinute(settings.predictions_per_minute) if settings.predictions_per_minute else None
        )

    def take_predictions(self, caller: Visitor, images: int = 1, *, asked: int | None = None) -> None:
        """Count `images` predictions of a caller who has neither login nor token; others are not limited.

        Parameters
        ----------
        asked
            Images of the whole request, where some of them are counted already.

        Raises
        ------
        HTTPException
            429 with Retry-After in seconds: the address asked for too many in the last minute.
        """
        if self._predictions is None or caller.is_known:
            return
        asked = images if asked is None else asked
        if asked > self._predictions.amount:
            raise HTTPException(
                429,
                f"Without a login or token an address may ask for {self._predictions.amount} predictions a minute, "
                f"and this request asks for {asked}.",
            )
        if images:
            self._take(self._predictions, PREDICTIONS, caller.address, images, what="predictions")

    def take_login(self, address: str) -> None:
        """Count an attempt to log in, right or wrong.

        Raises
        ------
        HTTPException
            429 with Retry-After in seconds.
        """
        self._take(self._logins, LOGINS, address, 1, what="attempts to log in")

    def take_unknown_name(self, name: str) -> str:
        """Count a failure for a name that no account answers to, as one is counted in the database.

        Returns until when it "rests" (HH:MM), else nothing: who tries names learns no more here than of real ones.
        """
        now, key = time.time(), hashlib.sha256(name.encode()).digest()
        failed, rests_until = self._unknown.get(key, (0, 0.0))
        if rests_until > now:
            return f"{datetime.fromtimestamp(rests_until, UTC).astimezone():%H:%M}"
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        is_last = failed + 1 >= self._tries
        self._unknown[key] = (0, now + self._rest_s) if is_last else (failed + 1, 0.0)
        return ""

    def _take(self, item: RateLimitItemPerMinute, kind: str, address: str, cost: int, *, what: str) -> None:
        if self._window.hit(item, kind, address, cost=cost):
            return
        wait_s = max(1, math.ceil(self._window.get_window_stats(item, kind, address).reset_time - time.time()))
        raise HTTPException(
            429, f"Too many {what} from this address: ask again in {wait_s} s.", {"Retry-After": str(wait_s)}
        )
