"""
What a handler of batches asks for: `@worker.handler(batch=100, wait=0.05)`.

It takes a list of the payloads of one task, and answers with a list of what became of each, or None:
then all are completed. What its annotations say of the lists is made into what they say of one payload
and one result, and from there on its jobs are stored, sent and read like any others.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Union, get_args, get_origin

from dutiful.errors import ConfigError
from dutiful.signature import Asks, members

BATCH_MAX = 10_000
WAIT_S = 0.05  # to gather jobs that come one by one, and short enough for nobody to notice
WAIT_MAX_S = 3600.0  # a job that waits here is one that no other worker can run


def check(batch: int, wait: float | None, *, spread: bool) -> None:
    """
    Raises:
        ConfigError: An option is wrong, or does not go with another.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= BATCH_MAX:
        raise ConfigError(f"batch is {batch!r}; it must be a whole number from 1 to {BATCH_MAX}.")
    if wait is not None and (isinstance(wait, bool) or not 0 <= wait <= WAIT_MAX_S or math.isnan(wait)):
        raise ConfigError(f"wait is {wait!r}; it must be seconds from 0 to {WAIT_MAX_S:.0f}.")
    if spread:
        raise ConfigError(
            "batch= does not go with spread=True or @worker.task: those take the arguments of one job, and a "
            'handler of batches takes a list. Use @worker.handler("name", batch=…).'
        )


def of_one(asks: Asks) -> Asks:
    """
    Return what a handler of batches asks for of one job: with `list[Order]` as `Order`.

    Raises:
        ConfigError: Its first parameter is not a list, or it needs others.
    """
    if asks.takes_any:
        return asks
    if not asks.parameters or any(each.required for each in asks.parameters[1:]):
        raise ConfigError(
            f"{asks.label}() handles batches, so it must take exactly one argument, the list of payloads "
            "(and, if it likes, ctx)."
        )
    first, *others = asks.parameters
    payload = first._replace(annotation=_element(asks.label, first.annotation))
    return dataclasses.replace(
        asks, parameters=(payload, *others), takes_extra=False, returns=_one_result(asks.returns)
    )


def _element(label: str, annotation: Any) -> Any:
    if annotation is Any:
        return Any
    found = list(members(annotation))
    kind = get_origin(found[0]) or found[0] if len(found) == 1 else None
    if kind not in (list, Sequence, Iterable):
        raise ConfigError(
            f"{label}() handles batches, so its first parameter is a list of payloads, not {annotation!r}. "
            "Annotate it as list[…], or drop batch=."
        )
    return next(iter(get_args(found[0])), Any)


def _one_result(returns: Any) -> Any:
    """From `list[Receipt | Exception] | None` to `Receipt`; Any, if it does not say."""
    kept: list[Any] = []
    for each in members(returns):
        if get_origin(each) in (list, tuple, Sequence):
            kept += [one for one in members(get_args(each)[0]) if not _is_error(one)]
    return Union[(*kept, None)] if kept else Any


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
