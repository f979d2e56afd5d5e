"""Handlers that the tests of processes.py run in children, which import this file by name."""

import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

from dutiful.errors import ConfigError
from dutiful.job import Cancel, Discard, Snooze


@dataclass
class Pair:
    left: int
    right: int


class Refused(Exception):
    """An exception of the program's own."""


class Stubborn(Exception):
    """It pickles, and does not unpickle: the arguments are not those of __init__."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.held = lambda: None


class Rude(Exception):
    def __str__(self) -> str:
        raise ValueError


def pid() -> int:
    return os.getpid()


def group() -> int:
    return os.getpgid(0)


def total(pair: Pair) -> int:
    return pair.left + pair.right


def same(text: str) -> str:
    return text


def added(x: int, y: int) -> int:
    return x + y


def nothing() -> None: ...


def no_json() -> object:
    return object()


def signal_of(name: str) -> Snooze | Cancel | Discard:
    return {"snooze": Snooze(5), "cancel": Cancel("why"), "discard": Discard("bad")}[name]


def seen(ctx) -> list[object]:
    ctx.check()
    try:
        ctx.transaction()
    except ConfigError as error:
        refusal = str(error)
    return [
        ctx.id,
        ctx.job_id,
        ctx.attempt,
        ctx.task,
        ctx.queue,
        ctx.cancelled,
        ctx.headers,
        ctx.after,
        refusal,
    ]


def refuse() -> None:
    secret = "local variables stay here"  # noqa: F841
    raise Refused("no")


def refuse_at_length() -> None:
    raise Refused("x" * 100_000 + "\udcff the end")


def stubborn() -> None:
    raise Stubborn(7, "because")


def unpicklable() -> None:
    raise Unpicklable


def rude() -> None:
    raise Rude


def leave(code: int) -> None:
    sys.exit(code)


def interrupt() -> None:
    raise KeyboardInterrupt


def vanish(code: int) -> None:
    os._exit(code)


def crash() -> None:
    ctypes.string_at(0)


def spin(path: str) -> None:
    """Say who we are, then never end."""
    write_pid(path)
    while True:
        pass


def hold_the_gil(path: str) -> None:
    write_pid(path)
    sum(range(10**12))


def spin_untied(path: str) -> None:
    """Spin without PR_SET_PDEATHSIG, as on a system that has none."""
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(0), 0, 0, 0)
    spin(path)


def hang_with_a_program(path: str) -> None:
    """Start a program, say who it is, then wait for it without an end."""
    program = subprocess.Popen(["sleep", "1000"])
    Path(path + ".new").write_text(str(program.pid))
    Path(path + ".new").rename(path)
    program.wait()


def die_before_a_program(path: str) -> None:
    """Die at once, and leave a process that has inherited all our pipes."""
    if not os.fork():
        write_pid(path)
        os.setsid()  # out of reach of a kill of the group
        time.sleep(1000)
    while not Path(path).exists():
        time.sleep(0.001)
    os._exit(4)


def shout(text: str) -> None:
    print(text)
    print(text, file=sys.stderr)


def interrupt_ourselves() -> str:
    """What a Ctrl-C in the terminal does to every process of its group."""
    os.kill(os.getpid(), 2)
    return "alive"


def write_pid(path: str) -> None:
    new = Path(f"{path}.new{os.getpid()}")
    new.write_text(str(os.getpid()))
    new.rename(path)


def thrice(fn):
    """A decorator of the user's, which belongs to the handler."""

    @wraps(fn)
    def run():
        return [fn(), fn(), fn()]

    return run


@thrice
def seven() -> int:
    return 7


class Task:
    """What @worker.task leaves in the module: it looks like one of ours, and wraps the function."""

    __module__ = "dutiful.task"

    def __init__(self, fn) -> None:
        self.__wrapped__ = fn


@Task
@thrice
def eight() -> int:
    return 8


class Outer:
    @staticmethod
    def inner() -> str:
        return "found"

    def method(self) -> None: ...


if __name__ == "__main__":

    def hidden() -> None: ...


def asks_too_much(ctx) -> list[str]:
    refusals = []
    for name in ("step", "astep", "sleep", "wait_event", "send", "progress"):
        try:
            getattr(ctx, name)
        except ConfigError as error:
            refusals.append(str(error))
    return refusals
