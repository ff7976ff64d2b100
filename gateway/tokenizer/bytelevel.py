"""The byte-level alphabet: how vocabularies spell each of the 256 bytes as one visible character."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    """Printable Latin-1 spells itself; the other bytes, in order, the characters from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _alphabet()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}


def spelling(data: bytes) -> str:
    return "".join(map(_CHARACTER_OF.__getitem__, data))


def from_spelling(token: str) -> bytes | None:
    """The bytes a vocabulary entry stands for; None if it uses characters outside the alphabet."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, token))
    except KeyError:
        return None
