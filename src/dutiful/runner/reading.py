"""From a claim's stored payload to what its handler is called with."""

from typing import Any

from dutiful.errors import NotDecodable
from dutiful.handler import Entry
from dutiful.job import Claim
from dutiful.sealing import Keyring, opened
from dutiful.secret import is_marked, unmarked
from dutiful.versions import parted


class Reading:
    """
    Reads one payload: decrypts it, upgrades it, decodes it.

    Attributes:
        text: Its JSON, as the handler here reads it.
        is_secret: Whether what the job carries is to be masked.
    """

    __slots__ = ("_claim", "_entry", "is_secret", "text")

    def __init__(self, claim: Claim, entry: Entry) -> None:
        self._claim = claim
        self._entry = entry
        self.text = ""
        self.is_secret = entry.secret

    def arguments(self, keyring: Keyring | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """
        Return the arguments of the handler.

        Raises:
            KeyMissing: Its key is not here. NotDecodable, NotDecryptable: It cannot be read by anybody.
        """
        claim, entry = self._claim, self._entry
        if claim.payload is None:
            raise NotDecodable(entry.task, "the stored value is no text")
        text = opened(keyring, claim.payload, "payload", parted(claim.task)[0])
        if is_marked(text):
            self.is_secret = True
            text = unmarked(text)
        if entry.upgrade is None:
            self.text = text
            return entry.arguments(text)
        self.text = entry.upgrade.text(text)
        try:
            return entry.arguments(self.text)
        except NotDecodable as error:
            raise entry.upgrade.explained(error) from error
