"""`--queues` of `dutiful run`: names, with or without weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dutiful import Strict

_EXAMPLE = "write critical,default or, with weights, critical=6,default=3"


def checked(text: str) -> str:
    """Return the option as it was given: it is passed on to the processes of `--processes`."""
    setting(text, strict=False)
    return text


def setting(text: str, *, strict: bool) -> tuple[str, ...] | dict[str, int] | Strict:
    """Return what `Worker(queues=…)` takes."""
    from dutiful import Strict

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r} names no queue; {_EXAMPLE}")
    if not any("=" in word for word in words):
        return Strict(*words) if strict else tuple(words)
    weights: dict[str, int] = {}
    for word in words:
        name, _, weight = word.partition("=")
        if not weight.isascii() or not weight.isdecimal():
            raise argparse.ArgumentTypeError(f"{word!r} has no weight, and others have; {_EXAMPLE}")
        weights[name.strip()] = int(weight)
    return weights
