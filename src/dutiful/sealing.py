"""
Encryption at rest: what the store keeps of payloads, results and the like when there is a key.

A stored value is `sealed:1:<key id>:<base64>`, which is no JSON: no reader takes it for a payload. In
the base64 are 16 bytes of salt, 12 of nonce, and what AES-256-GCM made of the text.

- The cipher's key is HMAC-SHA256(key, salt), and a salt is used for a million values at most. With
  random nonces one AES-GCM key is good for 2**32 values, which a busy worker has written in days.
- The place of a value (whose payload, which step) is authenticated with it: moved elsewhere in the
  database, it does not open.
- The key id is the beginning of a hash of the key, so that each value finds its key, and whoever has
  not got that key can say which it is.
"""

import base64
import binascii
import hashlib
import hmac
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from dutiful.errors import ConfigError, KeyMissing, NotDecryptable
from dutiful.job import JobId
from dutiful.secret import is_marked, marked, unmarked
from dutiful.versions import sealed_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = "sealed:"
VARIABLE = "DUTIFUL_KEY"
KEY_BYTES = 32
_FORM = re.compile(r"sealed:\d+:[0-9a-f]{8}:")
_VERSION = "1"
_SALT_BYTES, _NONCE_BYTES = 16, 12
_SALT_VALUES = 2**20  # sealed under one salt
_CIPHERS_MAX = 256  # kept: one for each worker that wrote what is read here


def new_key() -> str:
    """Return a new key for `Worker(encrypt=…)`: 32 random bytes, as base64 text."""
    return base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()


def is_sealed(text: str) -> bool:
    """Tell whether a stored text is encrypted."""
    # The form too: an error's message is text of any kind, and may begin so.
    return text.startswith(PREFIX) and _FORM.match(text) is not None


def key_id_of(text: str) -> str:
    """Return which key a sealed text wants."""
    return text.split(":", 3)[2]


class Keyring:
    """
    Keys: the first seals, each opens what it has sealed.

    Raises:
        ConfigError: There is no key, or the package `cryptography` is missing.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ConfigError("encrypt has no key; nothing was stored. Give one: dutiful.new_key() makes it.")
        self._cipher_of = _aes_gcm()
        self._keys = {_key_id(key): key for key in keys}
        self.key_id = _key_id(keys[0])
        # Whatever their order: so what is unique stays so while the first key becomes another.
        self._digest_key = hmac.digest(self._keys[min(self._keys)], b"dutiful unique", "sha256")
        self._ciphers: dict[tuple[str, bytes], AESGCM] = {}
        self._salt = b""
        self._count = itertools.count(_SALT_VALUES)

    @property
    def ids(self) -> list[str]:
        """The ids of all keys, the first first."""
        return list(self._keys)

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._keys)}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Keyring is not pickled: its keys are not to travel")

    def seal(self, text: str, *place: object) -> str:
        """Encrypt `text`, which can be opened only for the same `place`."""
        if next(self._count) >= _SALT_VALUES:
            # Two threads may both come here: then there are two new salts, and one is used once.
            self._salt, self._count = os.urandom(_SALT_BYTES), itertools.count()
        salt, nonce = self._salt, os.urandom(_NONCE_BYTES)
        data = self._cipher(self.key_id, salt).encrypt(nonce, text.encode(), _bound(place))
        return f"{PREFIX}{_VERSION}:{self.key_id}:{base64.b64encode(salt + nonce + data).decode()}"

    def open(self, text: str, *place: object) -> str:
        """
        Decrypt what was sealed for this `place`.

        Raises:
            KeyMissing: It was sealed with a key that is not here.
            NotDecryptable: It was changed, or moved from another place.
        """
        what = str(place[0])
        _prefix, number, key_id, encoded = [*text.split(":", 3), "", "", ""][:4]
        if number != _VERSION or key_id not in self._keys:
            raise KeyMissing(key_id, what)
        try:
            raw = base64.b64decode(encoded, validate=True)
            salt, nonce = raw[:_SALT_BYTES], raw[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
            data = self._cipher(key_id, salt).decrypt(nonce, raw[_SALT_BYTES + _NONCE_BYTES :], _bound(place))
            return data.decode()
        except Exception as error:  # InvalidTag, which cannot be named here, and what bad base64 raises
            raise NotDecryptable(key_id, what) from error

    def digest(self, text: str) -> str:
        """Return a hash of `text` that says nothing to those without the key."""
        return hmac.digest(self._digest_key, text.encode(), "sha256").hex()

    def is_current(self, text: str) -> bool:
        """Tell whether a stored text is sealed with the first key."""
        return text.startswith(f"{PREFIX}{_VERSION}:{self.key_id}:")

    def _cipher(self, key_id: str, salt: bytes) -> "AESGCM":
        cipher = self._ciphers.get((key_id, salt))
        if cipher is None:
            if len(self._ciphers) >= _CIPHERS_MAX:
                self._ciphers.clear()
            subkey = hmac.digest(self._keys[key_id], b"dutiful seal" + salt, "sha256")
            cipher = self._ciphers[key_id, salt] = self._cipher_of(subkey)
        return cipher


class Cover:
    """
    How the values of a job are stored: sealed, if there are keys; marked, if they are secret.

    Without either, texts are stored as they are.
    """

    __slots__ = ("is_secret", "job_id", "keyring")

    def __init__(
        self, keyring: Keyring | None, *, is_secret: bool = False, job_id: JobId | None = None
    ) -> None:
        self.keyring = keyring
        self.is_secret = is_secret
        self.job_id = job_id

    def of(self, job_id: JobId) -> "Cover":
        """Return the same for a job's own context: a missing key is this job's trouble, and no other's."""
        return Cover(self.keyring, is_secret=self.is_secret, job_id=job_id)

    def name(self, stored: str) -> str:
        """Return the stored name of a task whose payload is put here."""
        return stored if self.keyring is None else sealed_name(stored, self.keyring.key_id)

    def put(self, text: str, *place: object) -> str:
        """Return what to store of `text` at `place`."""
        if self.is_secret:
            text = marked(text)
        return text if self.keyring is None else self.keyring.seal(text, *place)

    def get(self, text: str, *place: object) -> str:
        """
        Return the text of what is stored, without mark.

        Raises:
            KeyMissing, NotDecryptable: As for `Keyring.open`.
        """
        try:
            text = opened(self.keyring, text, *place)
        except KeyMissing as error:
            error.job_id = self.job_id
            raise
        return unmarked(text) if is_marked(text) else text


def opened(keyring: Keyring | None, text: str, *place: object) -> str:
    """Return the text of what is stored, with its mark if it is secret. Raises as `Keyring.open`."""
    if not is_sealed(text):
        return text
    if keyring is None:
        raise KeyMissing(key_id_of(text), str(place[0]))
    return keyring.open(text, *place)


def keyring_of(setting: object) -> Keyring | None:
    """
    Read `encrypt=`: a key or several, None for what DUTIFUL_KEY says, False for none.

    Raises:
        ConfigError: That is no key. The key itself is not in the text.
    """
    if setting is False:
        return None
    if setting is None:
        setting = [key for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
        if not setting:
            return None
    given = [setting] if isinstance(setting, (str, bytes)) else setting
    if not isinstance(given, Iterable):
        raise ConfigError(
            f"encrypt is a {type(setting).__name__}; it must be a key, several, or False. Nothing was stored."
        )
    keys = list(cast("Iterable[object]", given))
    return Keyring([_key(key, at, len(keys)) for at, key in enumerate(keys, 1)])


def _key(given: object, at: int, count: int) -> bytes:
    if isinstance(given, bytes) and len(given) == KEY_BYTES:
        return given
    if isinstance(given, (str, bytes)):
        text = (
            (given if isinstance(given, bytes) else given.encode()).strip().translate(_URL_SAFE).rstrip(b"=")
        )
        try:
            key = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except binascii.Error:
            key = b""
        if len(key) == KEY_BYTES:
            return key
    raise ConfigError(
        f"encrypt: number {at} of {count} is no key; nothing was stored. A key is 32 random bytes, or their "
        "base64 text, as dutiful.new_key() and `dutiful key` make it."
    )


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"dutiful key id" + key).hexdigest()[:8]


def _bound(place: tuple[object, ...]) -> bytes:
    return "\0".join(("dutiful", _VERSION, *map(str, place))).encode()


def _aes_gcm() -> "type[AESGCM]":
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 20 ms, for those who use it
    except ImportError as error:
        raise ConfigError(
            "encrypt= and DUTIFUL_KEY need the package cryptography, which is not installed; nothing was "
            "stored. Install it: pip install 'dutiful[encrypt]'."
        ) from error
    return AESGCM
