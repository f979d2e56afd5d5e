"""
A stored job as people and programs see it: opened, its secrets masked, its version beside its task.

All that shows jobs gets them from here, so that nothing can forget to mask.
"""

import msgspec

from dutiful.errors import KeyMissing, NotDecryptable
from dutiful.job import AttemptError, Progress, Record
from dutiful.sealing import PREFIX, Keyring, is_sealed, opened
from dutiful.secret import masked, revealed
from dutiful.versions import parted, split

_SEALED_MESSAGE = f'"{PREFIX}'


def shown(record: Record, keyring: Keyring | None = None, *, reveal: bool = False) -> Record:
    """
    Return the job to show; `reveal` leaves its secrets in clear.

    What is encrypted and has no key here reads "<encrypted, key …>".
    """
    task, version = split(record.task)
    clear = revealed if reveal else masked

    def value(text: str | None, *place: object) -> str | None:
        if text is None:
            return None
        said, is_open = _read(text, keyring, *place)
        return clear(said) if is_open else f'"{said}"'

    return msgspec.structs.replace(
        record,
        task=task,
        version=version,
        payload=value(record.payload, "payload", parted(record.task)[0]),
        result=value(record.result, "result", record.id),
        progress=_progress(record, keyring),
        errors=tuple(_error(each, record.id, keyring) for each in record.errors),
    )


def _read(text: str, keyring: Keyring | None, *place: object) -> tuple[str, bool]:
    """Return a stored text; or what to say instead of it, and False."""
    try:
        return opened(keyring, text, *place), True
    except KeyMissing as error:
        return f"<encrypted, key {error.key_id}>", False
    except NotDecryptable:
        return "<cannot be decrypted>", False


def _progress(record: Record, keyring: Keyring | None) -> str | None:
    text = record.progress
    if text is None or _SEALED_MESSAGE not in text:
        return text
    said = msgspec.json.decode(text, type=Progress)
    message, _is_open = _read(said.message, keyring, "progress", record.id)
    return msgspec.json.encode(msgspec.structs.replace(said, message=message)).decode()


def _error(error: AttemptError, job_id: int, keyring: Keyring | None) -> AttemptError:
    if not is_sealed(error.message):
        return error
    message, is_open = _read(error.message, keyring, "message", job_id, error.attempt)
    trace = _read(error.traceback, keyring, "traceback", job_id, error.attempt)[0] if is_open else ""
    return msgspec.structs.replace(error, message=message, traceback=trace)
