"""The key of a store, and the files that it seals: encrypts and authenticates.

A random key seals all files; HOME/key.json holds it, itself sealed, by a passphrase through scrypt (RFC 7914), or by a random
key in the keyring of the desktop. key.json is public: without the passphrase or the keyring it opens nothing.

A sealed file is HEADER, a salt of 32 random bytes, and AES-256-GCM's ciphertext and tag of (length, content, padding). Each
file has a key of its own, HKDF-SHA256(key, salt, purpose), so no nonce can come twice. A file that is changed, cut, or put in
the place of a file for another purpose does not open. The padding is Padmé (Nikitin et al. 2019, "Reducing metadata leakage
from encrypted files", algorithm 1): of the length only log log bits are visible, for at most 12 % more bytes.
"""

import getpass
import os
import secrets
import sys
from pathlib import Path

from lm.errors import UserError
from lm.files import saving
from lm.files import untrusted as strangers

NEEDS = "lm.personal needs cryptography: pip install -r requirements/personal.txt"
FILE, PURPOSE = "key.json", "the key of the store"
VARIABLE, SERVICE = "LMCRAFT_PASSPHRASE", "lmcraft.personal"
COST = {"n": 1 << 17, "r": 8, "p": 1}  # 128 MiB and about half a second for each guess
DEAREST = 1 << 30  # bytes that a key.json may ask scrypt to use
SHORTEST = 8
HEADER = b"lmcraft personal 1\n"  # 1: the version of this format
SALT = 32
NONCE = bytes(12)  # a key encrypts one file
MAX = 1 << 30  # bytes of a content


def make(home: Path, passphrase_file: str = "", in_keyring: bool = False) -> tuple[bytes, dict]:
    """Return a new key and the content of its key.json. Raises UserError without a passphrase or a keyring."""
    key = secrets.token_bytes(32)
    if in_keyring:
        name, outer = secrets.token_hex(8), secrets.token_bytes(32)
        _keyring("set_password", SERVICE, name, outer.hex())
        how = {"kind": "keyring", "name": name}
    else:
        passphrase = _passphrase(home, passphrase_file, is_new=True)
        if len(passphrase) < SHORTEST:
            raise UserError(f"the passphrase is too short: take at least {SHORTEST} characters, better five random words")
        salt = secrets.token_bytes(16)
        how, outer = {"kind": "passphrase", "salt": salt.hex()} | COST, _scrypt(passphrase, salt, COST)
    return key, {"version": 1, **how, "sealed": seal(outer, PURPOSE, key).hex()}


def read(home: Path, passphrase_file: str = "") -> bytes:
    """Return the key of a store. Raises UserError if the passphrase is wrong, or key.json is damaged or gone."""
    how = _read_file(home)
    try:
        if how["kind"] == "keyring":
            found = _keyring("get_password", SERVICE, how["name"])
            if found is None:
                raise UserError(f"the keyring has no key for {home}: unlock the keyring in which the store was made")
            outer, cure = bytes.fromhex(found), "the key in the keyring is not the one of this store"
        else:
            cost = {name: how[name] for name in COST}
            if 128 * cost["n"] * cost["r"] > DEAREST or not 1 <= cost["p"] <= 16:
                raise UserError(f"{home / FILE} asks for more than 1 GiB of memory: it is damaged; put a copy of it back")
            outer = _scrypt(_passphrase(home, passphrase_file), bytes.fromhex(how["salt"]), cost)
            cure = "give the passphrase with which the store was made"
        return unseal(outer, PURPOSE, bytes.fromhex(how["sealed"]))
    except Unreadable:
        raise UserError(f"wrong key for {home}: {cure}") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{home / FILE} is damaged: put a copy of it back") from None


def remove(home: Path) -> None:
    """Delete the key from the keyring, if it is there, and key.json. Without them the store can never be read again."""
    how = _read_file(home)
    if how.get("kind") == "keyring":
        try:
            _keyring("delete_password", SERVICE, how.get("name", ""))
        except UserError as error:
            print(f"lm.personal: the key stays in the keyring: {error}", file=sys.stderr)
    path = home / FILE
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    saving.sync(home)


def is_in_keyring(home: Path) -> bool:
    return _read_file(home).get("kind") == "keyring"


def _read_file(home: Path) -> dict:
    try:
        found = strangers.read_json(home / FILE, most=1000)
    except FileNotFoundError:
        raise UserError(f"{home} holds no store: name its --home, or add something to make one") from None
    except (ValueError, OSError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{home / FILE} is damaged: put a copy of it back")
    return found


def _passphrase(home: Path, file: str, is_new: bool = False) -> str:
    if file:
        try:
            found = strangers.content(file, most=10_000).decode().removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--passphrase_file={file}: {getattr(error, 'strerror', None) or 'no UTF-8 text'}") from None
    elif VARIABLE in os.environ:
        found = os.environ[VARIABLE]
    elif sys.stdin.isatty():
        found = getpass.getpass(f"Passphrase of {home}: ")
        if is_new and found != getpass.getpass("The same again (it cannot be recovered): "):
            raise UserError("the two passphrases differ: run the command again")
    else:
        raise UserError(f"there is no terminal to ask for the passphrase: give --passphrase_file=FILE or {VARIABLE}")
    if not found:
        raise UserError("the passphrase is empty: give one of at least 8 characters")
    return found


def _scrypt(passphrase: str, salt: bytes, cost: dict[str, int]) -> bytes:
    try:
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ImportError:
        raise UserError(NEEDS) from None
    return Scrypt(salt, 32, **cost).derive(passphrase.encode())


def _keyring(call: str, *arguments: str) -> str | None:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        raise UserError("--keyring needs keyring: pip install -r requirements/personal.txt, or use a passphrase") from None
    try:
        return getattr(keyring, call)(*arguments)
    except KeyringError as error:
        raise UserError(f"no usable keyring here ({error}): use a passphrase".replace("\n", " ")) from None


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
        raise UserError(NEEDS) from None
    return AESGCM(HKDF(SHA256(), 32, salt, purpose.encode()).derive(key))
