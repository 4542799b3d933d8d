"""Identifiers become salted hashes; without the salt, nobody can try out which identifier gave which hash."""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from pathlib import Path


__all__ = ["SALT_VARIABLE", "Pseudonyms", "read_salt", "remove_identifiers"]

SALT_VARIABLE = "ALTA_SALT"
MIN_SALT_BYTES = 16
MIN_DIGITS = 4  # with its zeros; a shorter number may as well be a size or a count
MIN_LETTERS = 2


def read_salt(path: str | Path | None = None) -> bytes:
    """
    Read the salt, from a file or from the environment variable `ALTA_SALT`, never from the command line, which others
    can see.

    Args:
        path (`str` or `Path`, *optional*): file that holds it; white space around it does not count.

    Raises:
        `FileNotFoundError`: no such file.
        `ValueError`: no salt, or one of less than 16 bytes, which could be guessed.
    """
    salt = Path(path).read_bytes().strip() if path is not None else os.environ.get(SALT_VARIABLE, "").encode()
    if len(salt) < MIN_SALT_BYTES:
        raise ValueError(
            f"The salt must have at least {MIN_SALT_BYTES} bytes, in the environment variable {SALT_VARIABLE} or in "
            f"the file of --salt-file, got {len(salt)} bytes."
        )
    return salt


class Pseudonyms:
    """
    Names that stand for identifiers: HMAC-SHA256 under a secret salt, cut to 128 bits. One salt gives one name.

    Args:
        salt (`bytes`): the secret.
    """

    def __init__(self, salt: bytes):
        self._salt = salt

    def __call__(self, kind: str, *identifiers: str) -> str:
        """Name of what the identifiers stand for, such as "patient-5f0c…"; other `kind`s give other names."""
        message = "\0".join((kind, *identifiers)).encode()
        return f"{kind}-{hmac.new(self._salt, message, hashlib.sha256).hexdigest()[:32]}"


def remove_identifiers(text: str, identifiers: Iterable[str]) -> str:
    """
    Put `___` for identifiers that are known to belong to a text: whole words, and each part of a name; numbers with
    any leading zeros, which tables lose.

    It finds no others: reports must be de-identified before they come here.

    Args:
        text (`str`): a report.
        identifiers (iterable of `str`): numbers and names, also as DICOM writes them ("Doe^Jane"). In small letters a
            part of a name is left, since it is likely to be a word ("long", "white").
    """
    parts = {part for value in identifiers for part in (value, *re.split(r"[\s^,=]+", value))}
    parts = {part for part in parts if part.isdecimal() or len(part) >= MIN_LETTERS}
    if not parts:
        return text
    choices = "|".join(map(_pattern, sorted(parts, key=len, reverse=True)))
    return re.sub(rf"(?<!\w)(?:{choices})(?!\w)", _mark, text, flags=re.IGNORECASE)


def _pattern(part: str) -> str:
    if not part.isdecimal():
        return re.escape(part)
    digits = part.lstrip("0")
    return f"0{{{max(0, MIN_DIGITS - len(digits))},}}{digits}"


def _mark(match: re.Match) -> str:
    return match[0] if match[0].isalpha() and match[0].islower() else "___"
