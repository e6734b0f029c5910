"""Encrypt and authenticate the bytes of one file.

A sealed file is HEADER, a salt of 32 random bytes, and AES-256-GCM's ciphertext and tag of (length, content, padding). Each
file has a key of its own, HKDF-SHA256(key, salt, purpose), so no nonce can come twice. A file that is changed, cut, or put in
the place of a file for another purpose does not open.

The padding is Padmé (Nikitin et al. 2019, "Reducing metadata leakage from encrypted files", algorithm 1): of the length only
log log bits are visible, for at most 12 % more bytes.
"""

import os

from lm.errors import UserError

HEADER = b"lmcraft personal 1\n"  # 1: the version of this format
SALT = 32
NONCE = bytes(12)  # a key encrypts one file
MAX = 1 << 30  # bytes of a content


class Unreadable(Exception):
    """The bytes are not what `seal` returned for this key and purpose."""


def seal(key: bytes, purpose: str, content: bytes) -> bytes:
    """Return the bytes of a sealed file. key: 32 bytes. Raises UserError if the content is too large."""
    if len(content) > MAX:
        raise UserError(f"{len(content):,} bytes are too many for one file of the store: at most {MAX:,}")
    salt, size = os.urandom(SALT), 8 + len(content)
    padded = len(content).to_bytes(8, "big") + content + bytes(padme(size) - size)
    return HEADER + salt + _cipher(key, salt, purpose).encrypt(NONCE, padded, HEADER + salt)


def unseal(key: bytes, purpose: str, sealed: bytes) -> bytes:
    """Return the content. Raises Unreadable."""
    from cryptography.exceptions import InvalidTag

    begin = len(HEADER) + SALT
    if not sealed.startswith(HEADER):
        raise Unreadable("it is no file of this version of the store")
    try:
        padded = _cipher(key, sealed[len(HEADER) : begin], purpose).decrypt(NONCE, sealed[begin:], sealed[:begin])
    except (InvalidTag, ValueError):
        raise Unreadable("it was changed, or belongs to another key") from None
    return padded[8 : 8 + int.from_bytes(padded[:8], "big")]


def padme(size: int) -> int:
    """Return the padded size: its last E − S bits are zero, where E = ⌊log₂ size⌋ and S = ⌊log₂ E⌋ + 1."""
    if size < 2:
        return size
    exponent = size.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (size + mask) & ~mask


def _cipher(key: bytes, salt: bytes, purpose: str):
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise UserError("lm.personal needs cryptography: pip install -r requirements/personal.txt") from None
    return AESGCM(HKDF(SHA256(), 32, salt, purpose.encode()).derive(key))
