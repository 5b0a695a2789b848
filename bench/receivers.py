"""Three programs that receive images, each fresh in a folder of its own: this node, Orthanc and dcmtk storescp."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Protocol

from pacs_node.listener.service import bind_dicom_socket
from pacs_node.settings import load_settings
from tests.acceptance.node import Node, free_port, until
from tests.acceptance.peers import Orthanc, echoscu, no_delay, program


class Receiver(Protocol):
    """Started on construction; counts what it stored."""

    ae_title: str
    port: int

    def count(self) -> int: ...

    def stop(self) -> None: ...


class NodeListeners:
    """The node's listeners as shipped (two processes, one socket), without the roles that come after them.

    Everything up to the acknowledgement is done: fsync of file and folder, study, series, instance, job and audit rows,
    commit. Judging is left out, because the peers do none: it would take their share of the same cores.
    """

    def __init__(self, folder: Path) -> None:
        self.node = Node(folder, base={})
        self.ae_title, self.port = "PACS_NODE", self.node.dicom_port
        self.node.command("migrate", check=True)
        settings = load_settings(self.node.config)
        self._socket = bind_dicom_socket(settings.dicom)
        self._processes = [
            self.node.popen(
                *("listen", "--supervised", "--process-name", f"listen-{i + 1}"),
                *("--socket-fd", str(self._socket.fileno())),
                stdin=subprocess.PIPE,  # a bench that dies takes its listeners along
                pass_fds=(self._socket.fileno(),),
            )
            for i in range(settings.dicom.listeners)
        ]
        until(self._have_all_served, timeout_s=30, what="the listeners", every_s=0.05)

    def _have_all_served(self) -> bool:
        """Verify until every listener had an association: none may still be starting when the clock starts."""
        echoscu(self.node)
        return self.node.count("SELECT count(DISTINCT listener) FROM associations") == len(self._processes)

    def count(self) -> int:
        return self.node.count("SELECT count(*) FROM instances")

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)
        self._socket.close()


class OrthancReceiver:
    """Orthanc with its defaults."""

    def __init__(self, folder: Path) -> None:
        self._orthanc = Orthanc(folder).start()
        self.ae_title, self.port = self._orthanc.ae_title, self._orthanc.port

    def count(self) -> int:
        return self._orthanc.count()

    def stop(self) -> None:
        self._orthanc.stop()


class Storescp:
    """dcmtk storescp, one process per association; it never fsyncs."""

    ae_title = "STORESCP"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "received"
        self._folder.mkdir(parents=True)
        self.port = free_port()
        command = [program("storescp") or "storescp", "--fork", "-od", str(self._folder), str(self.port)]
        self._process = subprocess.Popen(command, env=no_delay(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: is_listening(self.port), timeout_s=10, what="storescp", every_s=0.05)

    def count(self) -> int:
        return sum(1 for _ in self._folder.iterdir())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


RECEIVERS: dict[str, type[NodeListeners] | type[OrthancReceiver] | type[Storescp]] = {
    "node": NodeListeners,
    "Orthanc": OrthancReceiver,
    "storescp": Storescp,
}


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
