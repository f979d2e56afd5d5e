"""How an exception becomes text: bounded, storable, and without our own frames."""

from __future__ import annotations

import pytest

from dutiful.runner import failure
from dutiful.runner.failure import TEXT_BYTES_MAX, error_info


def _raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\0b", r"a\x00b"),
        ("a\ud800b", r"a\ud800b"),
        ("\udcff", r"\udcff"),
        ("naïve ✗ \U0001f600 \x01\x7f", "naïve ✗ \U0001f600 \x01\x7f"),
    ],
)
def test_what_cannot_be_stored_is_escaped_and_the_rest_left(text: str, stored: str) -> None:
    """NULs end a text in SQLite's JSON, surrogates have no UTF-8; both can still be read."""
    info = error_info(_raised(ValueError(text)))

    assert (info.type, info.message) == ("ValueError", stored)
    assert stored in info.traceback
    assert "\0" not in info.traceback
    info.traceback.encode()


@pytest.mark.parametrize("letter", ["x", "é", "✗", "\U0001f600", "\0", "\ud800"])
def test_a_text_is_bounded_and_its_end_kept(letter: str) -> None:
    """However many bytes a letter has or becomes: never cut in the middle of one."""
    info = error_info(_raised(ValueError(letter * TEXT_BYTES_MAX * 2 + "the end")))

    for text in (info.message, info.traceback.rstrip()):
        assert text.startswith("…")
        assert text.endswith("the end")
        assert len(text.encode()) <= TEXT_BYTES_MAX + len("…".encode())
        assert "\ufffd" not in text


def test_a_text_that_just_fits_is_left_whole() -> None:
    text = "x" * TEXT_BYTES_MAX

    assert error_info(ValueError(text)).message == text


def test_our_own_frames_are_skipped() -> None:
    """A traceback begins with the handler's code; what called it says nothing to its author."""

    def handler() -> None:
        raise ValueError("no")

    # Code whose file lies where ours does, as attempt.py.
    space = {"handler": handler}
    exec(compile("def run():\n    handler()\n", f"{failure._OURS}/attempt.py", "exec"), space)
    try:
        space["run"]()
    except ValueError as error:
        caught = error.with_traceback(error.__traceback__.tb_next)  # without the frame of this test

    trace = error_info(caught).traceback

    assert "attempt.py" not in trace
    assert trace.splitlines()[1].endswith("in handler")


def test_an_error_of_ours_alone_keeps_its_frames() -> None:
    """To skip them all would leave nothing to look at."""
    space: dict[str, object] = {}
    exec(compile("def run():\n    raise ValueError('no')\n", f"{failure._OURS}/attempt.py", "exec"), space)
    try:
        space["run"]()
    except ValueError as error:
        caught = error.with_traceback(error.__traceback__.tb_next)

    assert "attempt.py" in error_info(caught).traceback


def test_an_error_whose_str_raises_is_told_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    info = error_info(_raised(Mute()))

    assert info.type.endswith("Mute")
    assert info.message == "<its str() raised RuntimeError>"
