"""Keys of a TOML table, read one by one: every refusal names the file and the key."""

from __future__ import annotations

import re
from typing import Any

from models.errors import CardError


class TableReader:
    """Reads keys of one TOML table and names the key that is wrong.

    Every method raises CardError where the key is missing or its value is another than asked for.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self._unread = set(values)
        self.where = where

    def _get(self, key: str, *kinds: type) -> Any:
        self._unread.discard(key)
        if key not in self._values:
            raise CardError(f"{self.where}: {key} is missing")
        value = self._values[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise CardError(f"{self.where}: {key} must be of type {kinds[0].__name__}, not {value!r}")
        return value

    def has(self, key: str) -> bool:
        """Whether an optional key is there."""
        return key in self._values

    def text(self, key: str) -> str:
        """Return a text that is not empty."""
        value: str = self._get(key, str)
        if not value.strip():
            raise CardError(f"{self.where}: {key} is empty")
        return value

    def matching(self, key: str, pattern: str) -> str:
        """Return a text that matches the pattern as a whole."""
        value = self.text(key)
        if re.fullmatch(pattern, value) is None:
            raise CardError(f"{self.where}: {key} must look like {pattern}, not {value!r}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """Return a number in [low, high]."""
        return self._within(key, float(self._get(key, float, int)), low, high)

    def whole(self, key: str, low: int, high: int) -> int:
        """Return a whole number in [low, high]."""
        value: int = self._get(key, int)
        return int(self._within(key, value, low, high))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of at least one text."""
        values = self._get(key, list)
        if not values or not all(isinstance(value, str) for value in values):
            raise CardError(f"{self.where}: {key} must be a list of texts, not {values!r}")
        return tuple(values)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """Return a list of numbers in [low, high]."""
        values = self._get(key, list)
        if not all(type(value) in (int, float) for value in values):
            raise CardError(f"{self.where}: {key} must be a list of numbers, not {values!r}")
        return tuple(self._within(key, float(value), low, high) for value in values)

    def ages(self, key: str) -> tuple[int, int]:
        """Return a range of years, both ends included."""
        values = self._get(key, list)
        if len(values) != 2 or not all(type(value) is int for value in values) or not 0 <= values[0] <= values[1]:
            raise CardError(f"{self.where}: {key} must be [youngest, oldest] in years, not {values!r}")
        return values[0], values[1]

    def table(self, key: str) -> dict[str, Any]:
        """Return a table as it is."""
        table: dict[str, Any] = self._get(key, dict)
        return table

    def inner(self, key: str) -> TableReader:
        """Return the reader of a table within this one."""
        return TableReader(self.table(key), f"{self.where}: {key}")

    def inners(self, key: str) -> list[TableReader]:
        """Return a reader for each table of a list of at least one."""
        values = self._get(key, list)
        if not values or not all(isinstance(value, dict) for value in values):
            raise CardError(f"{self.where}: {key} must be at least one [[{key}]] table")
        return [TableReader(value, f"{self.where}: {key}[{place}]") for place, value in enumerate(values)]

    def names(self) -> list[str]:
        """Return the table's keys, in order."""
        return list(self._values)

    def refuse_unread(self) -> None:
        """Refuse a key that nobody asked for: a typing error must not pass for a default."""
        if self._unread:
            raise CardError(f"{self.where}: unknown key {min(self._unread)!r}")

    def _within(self, key: str, value: float, low: float, high: float) -> float:
        if not low <= value <= high:
            raise CardError(f"{self.where}: {key} must lie between {low} and {high}, not {value}")
        return value
