"""Passwords and secrets: what is good enough, how it is kept, how it is compared.

Argon2id with the parameters of RFC 9106 (second recommended option: 64 MiB, three passes); one at a time per process,
so that a flood of logins cannot take the memory that images need.
"""

from __future__ import annotations

import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

LEAST_CHARACTERS = 12
MOST_CHARACTERS = 256
TOKEN_PREFIX = "pacsnode_"
"""What an API token begins with, so that scanners recognise one in a file."""
_hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
_turn = threading.Lock()
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$7jfDqhnBqkoYEmV1Z2W7Fw$PURWGZpChM9JZh8YcDbbSoHGsIH9tbMZ4rKYVEmDVMU"
"""A hash that no password has: an unknown name takes as long as a wrong password."""


class WeakPassword(ValueError):
    """The password is too easy to guess; the message says what is asked for."""


def check_password(password: str, name: str) -> None:
    """Refuse what is guessed first; length is what counts (NIST SP 800-63B).

    Raises
    ------
    WeakPassword
        It is too short or too long, has too few different characters, or holds the account's name.
    """
    if len(password) < LEAST_CHARACTERS:
        raise WeakPassword(f"A password has at least {LEAST_CHARACTERS} characters; a short sentence is a good one.")
    if len(password) > MOST_CHARACTERS:
        raise WeakPassword(f"A password has at most {MOST_CHARACTERS} characters.")
    if len(set(password)) < 5 or (len(name) > 2 and name.lower() in password.lower()):
        raise WeakPassword("This password is too easy to guess: it repeats itself, or holds the user name.")


def hash_password(password: str) -> str:
    """Return the Argon2id hash, with its own random salt."""
    with _turn:
        return _hasher.hash(password)


def is_password(password: str, password_hash: str | None) -> bool:
    """Compare; where there is no hash the same time passes, and the answer is no."""
    with _turn:
        try:
            return _hasher.verify(password_hash or _NOBODYS, password[: MOST_CHARACTERS + 1]) and bool(password_hash)
        except (VerificationError, InvalidHashError):
            return False


def is_outdated(password_hash: str) -> bool:
    """Tell whether a hash has weaker parameters than are used today."""
    return _hasher.check_needs_rehash(password_hash)


def new_secret(prefix: str = "") -> str:
    """Return 256 random bits as text."""
    return prefix + secrets.token_urlsafe(32)
