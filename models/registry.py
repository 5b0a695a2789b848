"""Model versions on disk: list, find, verify, add. Takes folders of bundles; gives cards.

A bundle is `<folder>/<name>/<version>/` with a card, weights and, where the card names them, feature statistics.
Which version is active, and since when, is a fact for the database, not for this room: here every complete bundle is
equal.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from models.card import CARD_FILE, ModelCard, load_card
from models.errors import BundleConflict, CardError, UnknownModel


class Registry:
    """The bundles of several folders; the first folder that holds a name and version wins, new ones go to the last."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    def cards(self) -> list[ModelCard]:
        """Return every bundle's card, by name, oldest version first.

        Raises
        ------
        CardError
            A card cannot be read, or its folder bears another name or version.
        """
        found: dict[tuple[str, str], ModelCard] = {}
        for folder in self._folders:
            for path in sorted(folder.glob(f"[!.]*/[!.]*/{CARD_FILE}")):
                card = load_card(path.parent)
                if (card.name, card.version) != (path.parent.parent.name, path.parent.name):
                    raise CardError(f"{path}: name or version differ from the folder's")
                found.setdefault((card.name, card.version), card)
        return sorted(found.values(), key=lambda card: (card.name, _ordered(card.version)))

    def find(self, name: str, version: str) -> ModelCard:
        """Return the card of one version.

        Raises
        ------
        UnknownModel
            There is none.
        """
        cards = self.cards()
        for card in cards:
            if (card.name, card.version) == (name, version):
                return card
        known = ", ".join(f"{card.name} {card.version}" for card in cards) or "none"
        raise UnknownModel(f"no model {name} {version}; known: {known}")

    def newest(self) -> ModelCard:
        """Return the card with the highest version, for a node that was told none.

        Raises
        ------
        UnknownModel
            There is no bundle at all.
        """
        cards = self.cards()
        if not cards:
            raise UnknownModel(f"no model in {', '.join(str(folder) for folder in self._folders)}")
        return max(cards, key=lambda card: (_ordered(card.version), card.name))

    def verify(self, card: ModelCard) -> None:
        """Check that weights and feature statistics are the card's, by digest, names and shapes.

        Raises
        ------
        WeightsMismatch
            They are not.
        """
        from models.feature_statistics import load_statistics  # brings torch: those who only read cards do without
        from models.weights import load_network

        load_statistics(card, load_network(card).feature_count)

    def add(self, source: Path) -> ModelCard:
        """Copy a verified bundle into the last folder, whole or not at all; adding it twice changes nothing.

        Raises
        ------
        CardError, WeightsMismatch
            The bundle is not sound.
        BundleConflict
            The name and version are taken by another content.
        """
        card = load_card(source)
        self.verify(card)
        taken = [known for known in self.cards() if (known.name, known.version) == (card.name, card.version)]
        if taken:
            return _same_or_conflict(taken[0], card)
        return _same_or_conflict(load_card(self._place(card, _copy_durably)), card)

    def keep(self, card: ModelCard) -> None:
        """See that the last folder holds a bundle too: a release that brings another one must not take this one away.

        Reports of what it said, their pictures and the way back to it need it still.
        """
        if not (self._folders[-1] / card.name / card.version).exists():
            self._place(card, _link_or_copy)

    def _place(self, card: ModelCard, put: Callable[[Path, Path], None]) -> Path:
        """Put a bundle's files into the last folder, under a name that is not listed until all of them are there."""
        target = self._folders[-1] / card.name / card.version
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
        try:
            for name in card.files:
                put(card.folder / name, incoming / name)
            incoming.chmod(0o755)
            incoming.rename(target)
        except OSError:
            shutil.rmtree(incoming, ignore_errors=True)
            if not target.exists():  # else another process was first
                raise
        return target


def _same_or_conflict(known: ModelCard, offered: ModelCard) -> ModelCard:
    if (known.folder / CARD_FILE).read_bytes() != (offered.folder / CARD_FILE).read_bytes():
        raise BundleConflict(f"{known.folder} already holds another {known.name} {known.version}")
    return known


def _copy_durably(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _link_or_copy(source: Path, target: Path) -> None:
    """Give our own file a second name, which outlives the first; copy it where the file system cannot."""
    try:
        target.hardlink_to(source)
    except OSError:
        _copy_durably(source, target)


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
