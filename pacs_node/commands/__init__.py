"""The commands of an administrator, one room each; `pacs_node.cli` puts them together."""
