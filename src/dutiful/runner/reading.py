"""From a claim's stored payload to what its handler is called with."""

from typing import Any

from dutiful.errors import NotDecodable
from dutiful.runner.attempt import Attempt
from dutiful.sealing import Keyring, opened
from dutiful.secret import is_marked, unmarked
from dutiful.versions import parted


def arguments(attempt: Attempt, keyring: Keyring | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    Return the arguments of a handler: decrypt the payload, upgrade it, and decode it.

    Raises:
        KeyMissing: Its key is not here. NotDecodable, NotDecryptable: It cannot be read by anybody.
    """
    claim, entry = attempt.claim, attempt.entry
    if claim.payload is None:
        raise NotDecodable(entry.task, "the stored value is no text")
    text = opened(keyring, claim.payload, "payload", parted(claim.task)[0])
    if is_marked(text):
        attempt.is_secret = True
        text = unmarked(text)
    if entry.upgrade is None:
        attempt.text = text
        return entry.arguments(text)
    attempt.text = entry.upgrade.text(text)
    try:
        return entry.arguments(attempt.text)
    except NotDecodable as error:
        raise entry.upgrade.explained(error) from error
