"""The service: edges and wiring. `pacs_node.cli` puts it together."""

from importlib.metadata import version

__version__ = version("pacs-node")
