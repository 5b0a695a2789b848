"""Whether the node that these settings describe runs and is ready, as its page says it."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request

from pacs_node.settings.web import WebSettings

TIMEOUT_S = 2.0


def ready_url(web: WebSettings) -> str:
    """Return the address of `/ready` on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(web.host, f"[{web.host}]" if ":" in web.host else web.host)
    return f"{'https' if web.is_tls else 'http'}://{host}:{web.port}/ready"


def is_ready(web: WebSettings) -> bool | None:
    """Tell whether the node is ready; None when nobody answers at its address."""
    secure = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())  # it is our own port
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)  # whatever http_proxy says
    try:
        with opener.open(ready_url(web), timeout=TIMEOUT_S) as response:
            return int(response.status) == 200
    except urllib.error.HTTPError:
        return False
    except OSError:
        return None
