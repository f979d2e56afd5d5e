"""Handlers that run in child processes, which import this file by name."""

import asyncio
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dutiful import Cancel, Context, Discard, Snooze


def pid(_payload: Any) -> int:
    return os.getpid()


def forgets_to_await(_payload: Any) -> Any:
    return asyncio.sleep(0)


def headers_and_after(ctx: Context) -> Any:
    return [ctx.headers, ctx.after]


def double(n: int) -> int:
    return 2 * n


def spin(path: str) -> None:
    """Say who we are, then never end."""
    _tell(path)
    while True:
        pass


def sleep(path: str) -> None:
    _tell(path)
    time.sleep(1000)


def fail(message: str) -> None:
    raise ValueError(message)


def leave(code: int) -> None:
    sys.exit(code)


def vanish(code: int) -> None:
    os._exit(code)


def kill_itself(_payload: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_json(_payload: Any) -> object:
    return object()


def odd_snooze(_payload: Any) -> Snooze:
    return Snooze("soon")  # type: ignore[arg-type]


def outcome(name: str) -> Snooze | Cancel | Discard:
    return {"snooze": Snooze(0), "cancel": Cancel("why"), "discard": Discard("bad")}[name]


@contextmanager
def _in_the_crowd(folder: str):
    """Be counted, by all processes, as one who is there."""
    me = Path(folder) / f"{os.getpid()}.{time.monotonic_ns()}"
    me.touch()
    yield sum(1 for _ in Path(folder).iterdir())
    me.unlink()


def crowd(folder: str) -> int:
    """Return how many of us there were at once."""
    with _in_the_crowd(folder) as count:
        time.sleep(0.02)
    return count


async def acrowd(folder: str) -> int:
    with _in_the_crowd(folder) as count:
        await asyncio.sleep(0.02)
    return count


def _tell(path: str) -> None:
    new = Path(f"{path}.new")
    new.write_text(str(os.getpid()))
    new.rename(path)


def add(n: int) -> int:
    return n + 1


def fail_with_no(_n: int) -> None:
    raise ValueError("no")


def outcomes(names: list, ctx: Any) -> list:
    """Answer for each job of a batch by its name, another way in a second attempt."""
    answers = {
        "ok": lambda again: {"n": 1},
        "none": lambda again: None,
        "fails": lambda again: "now" if again else ValueError("no"),
        "dies": lambda again: ValueError("never"),
        "later": lambda again: "then" if again else Snooze(0),
        "drop": lambda again: Discard("why"),
        "stop": lambda again: Cancel("so"),
    }
    return [answers[name](job.attempt > 1) for name, job in zip(names, ctx.jobs, strict=True)]


def add_together(numbers: list[int]) -> list[int]:
    return [n + 1 for n in numbers]


def fail_together(_numbers: list[int]) -> None:
    raise ValueError("no")


def sleep_together(paths: list[str]) -> None:
    _tell(paths[0])
    time.sleep(1000)


def die_of_three(numbers: list[int]) -> None:
    if 3 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
