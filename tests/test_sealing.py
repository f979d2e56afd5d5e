"""Encryption of stored values: keys, places, and what a wrong one leads to."""

import base64
import builtins
import os
import pickle
import traceback
from itertools import pairwise

import pytest

from dutiful import ConfigError, KeyMissing, NotDecryptable, Worker, new_key, sealing
from dutiful.sealing import Keyring, is_sealed, keyring_of

PLACE = ("payload", "task")


def raw():
    return os.urandom(32)


def test_what_is_sealed_opens_again_and_says_nothing():
    ring = Keyring([raw()])

    text = ring.seal("plain ü text", *PLACE)

    assert is_sealed(text)
    assert "plain" not in text
    assert ring.open(text, *PLACE) == "plain ü text"


def test_the_same_text_is_never_sealed_alike():
    ring = Keyring([raw()])

    assert len({ring.seal("a", *PLACE) for _ in range(500)}) == 500


def test_it_opens_only_in_its_place():
    ring = Keyring([raw()])
    text = ring.seal("a", "step", 1, "charge")

    for place in (("step", 2, "charge"), ("step", 1, "other"), ("result", 1), ("step", "1\0charge", "")):
        with pytest.raises(NotDecryptable, match="does not open with key"):
            ring.open(text, *place)


def test_a_changed_value_does_not_open():
    ring = Keyring([raw()])
    head, _, data = ring.seal("some text", *PLACE).rpartition(":")
    sealed = base64.b64decode(data)

    for at in range(len(sealed)):
        spoiled = bytearray(sealed)
        spoiled[at] ^= 1
        with pytest.raises(NotDecryptable):
            ring.open(f"{head}:{base64.b64encode(spoiled).decode()}", *PLACE)
    for data in ("", "AAAA", "?", "ä", base64.b64encode(sealed[:-1]).decode()):
        with pytest.raises(NotDecryptable):
            ring.open(f"{head}:{data}", *PLACE)


def test_the_first_key_seals_and_all_open():
    old, new = raw(), raw()
    before = Keyring([old]).seal("a", *PLACE)
    both = Keyring([new, old])

    after = both.seal("b", *PLACE)

    assert both.open(before, *PLACE) == "a"
    assert Keyring([new]).open(after, *PLACE) == "b"
    assert both.is_current(after)
    assert not both.is_current(before)


def test_a_missing_key_is_named_by_its_id():
    one, other = Keyring([raw()]), Keyring([raw()])
    text = one.seal("a", *PLACE)

    with pytest.raises(KeyMissing, match=one.key_id):
        other.open(text, *PLACE)
    with pytest.raises(KeyMissing):
        other.open(text.replace("sealed:1:", "sealed:2:"), *PLACE)  # of a later version of dutiful
    with pytest.raises(KeyMissing):
        other.open("sealed:", *PLACE)


def test_many_salts_are_used_and_few_ciphers_kept(monkeypatch):
    monkeypatch.setattr(sealing, "_SALT_VALUES", 2)
    monkeypatch.setattr(sealing, "_CIPHERS_MAX", 3)
    ring = Keyring([raw()])

    texts = [ring.seal(str(n), *PLACE) for n in range(40)]

    assert [ring.open(text, *PLACE) for text in texts] == [str(n) for n in range(40)]
    salts = {base64.b64decode(text.rpartition(":")[2])[:16] for text in texts}
    assert len(salts) >= 13
    assert len(ring._ciphers) <= 3


def test_a_digest_changes_once_while_keys_do():
    old, new = raw(), raw()

    digests = [Keyring(keys).digest("a") for keys in ([old], [old, new], [new, old], [new])]

    assert sum(one != other for one, other in pairwise(digests)) == 1
    assert len(set(digests)) == 2


def test_what_only_begins_like_one_is_none():
    for text in ("sealed: the envelope", "sealed:1:", "sealed:1:not a key:", '"sealed:1:0123abcd:AAAA"', ""):
        assert not is_sealed(text)
    assert is_sealed("sealed:2:0123abcd:AAAA")  # of a later version of dutiful


# --- keys -------------------------------------------------------------------------------------------


def test_a_key_is_bytes_or_base64_text_of_any_kind():
    key = bytes(range(224, 256))  # has + and / in base64, - and _ in the kind for URLs
    url, plain = base64.urlsafe_b64encode(key).decode(), base64.b64encode(key).decode()

    rings = [
        keyring_of(each) for each in (key, url, plain, plain.rstrip("="), f" {url}\n", url.encode(), [key])
    ]

    assert len({ring.key_id for ring in rings}) == 1


def test_a_new_key_is_a_key():
    assert keyring_of(new_key()).key_id != keyring_of(new_key()).key_id


WRONG = ["", "abc", b"short", "ü" * 44, 7, b"x" * 33, "x" * 43 + "!", {}, [], [None]]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_key_is_refused_and_not_told(wrong):
    with pytest.raises(ConfigError) as caught:
        Worker(":memory:", encrypt=wrong)

    told = "".join(traceback.format_exception(caught.value))
    for each in wrong if isinstance(wrong, list) else [wrong]:
        if isinstance(each, str | bytes) and each:
            assert str(each) not in told


def test_keys_are_in_no_repr_and_not_pickled():
    key = new_key()
    ring = keyring_of(key)
    worker = Worker(":memory:", encrypt=key)

    for shown in (repr(ring), repr(worker), repr(worker._config)):
        assert key not in shown
        assert repr(base64.urlsafe_b64decode(key)) not in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(ring)


def test_the_environment_has_keys_for_those_who_name_none(monkeypatch):
    first, second = new_key(), new_key()
    monkeypatch.setenv("DUTIFUL_KEY", f"{first}, {second}")

    assert keyring_of(None).key_id == keyring_of(first).key_id
    assert keyring_of(None).open(keyring_of(second).seal("a", *PLACE), *PLACE) == "a"
    assert keyring_of(False) is None
    assert keyring_of(second).key_id != keyring_of(None).key_id
    monkeypatch.setenv("DUTIFUL_KEY", "")
    assert keyring_of(None) is None


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("cryptography"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(ConfigError, match=r"pip install 'dutiful\[encrypt\]'"):
        keyring_of(new_key())
