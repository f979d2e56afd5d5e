"""What the tests of encryption share: keys, a text that is stored everywhere, and a look at the disk."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from dutiful import Backoff, Context, Retry, State, new_key
from tests.servers import programs
from tests.worker.tools import finished, result, until

OLD, NEW, OTHER = new_key(), new_key(), new_key()
NOW = Retry(max_attempts=2, backoff=Backoff(first_s=0.001))
NEEDLE = "needle-7391-ä"

# Where a value of a job can be.
COLUMNS = [
    ("job", "payload"),
    ("job", "result"),
    ("job", "progress"),
    ("error", "message"),
    ("error", "traceback"),
    ("step", "value"),
    ("event", "value"),
    ("after", "result"),
    ("schedule", "payload"),
]


@dataclass
class Letter:
    text: str


def echo(letter: Letter) -> Letter:
    return letter


def fail(letter: Letter) -> None:
    raise ValueError(letter.text)


async def aecho(letter: Letter) -> Letter:
    return letter


def with_handlers(worker):
    """Give it handlers of every kind."""
    worker.handler("thread")(echo)
    worker.handler("child", process=True)(echo)
    worker.handler("async")(aecho)
    worker.handler("fail", retry=Retry(max_attempts=1))(fail)

    @worker.handler("steps")
    def steps(text: str, ctx: Context) -> list[str]:
        ctx.progress(1, 2, f"at {text}")
        done = ctx.step("first", str, text)
        came = ctx.wait_event("go", step="custom name")
        ctx.send({"text": text}, task="sent")
        return [done, came]

    @worker.handler("then")
    def then(payload: str, ctx: Context) -> list[object]:
        return [payload, *ctx.after]

    worker.every("1h", name="tick", payload=NEEDLE)(lambda payload: None)
    return worker


def rows_of_every_kind(worker):
    """Have the needle stored in each place where a value can be; return what readers see of it."""
    one = worker.send(Letter(NEEDLE), task="thread")
    seen = {"result": result(one).text, "payload": json.loads(one.refresh().payload)["text"]}
    for kind in ("child", "async"):
        seen[kind] = result(worker.send(Letter(NEEDLE), task=kind)).text
    failed = worker.send(Letter(NEEDLE), task="fail")
    (error,) = finished(failed).errors
    seen["error"] = error.message
    assert NEEDLE in error.traceback
    steps = worker.send(NEEDLE, task="steps")
    until(lambda: steps.refresh().attempt == 1 and steps.state is State.PENDING)
    assert worker.send_event("go", NEEDLE) == steps
    seen["step"], seen["event"] = result(steps)
    seen["progress"] = steps.progress.message.removeprefix("at ")
    (sent,) = worker.jobs(task="sent")
    seen["sent"] = json.loads(sent.payload)["text"]
    seen["after"] = result(worker.send(NEEDLE, task="then", after=one))[1]["text"]
    worker.send(NEEDLE, task="then", after=one, delay=3600)
    worker.send_event("nobody waits", NEEDLE)
    seen["many"] = json.loads(worker.send_many([Letter(NEEDLE)] * 3, task="later")[2].refresh().payload)[
        "text"
    ]
    seen["special"] = json.loads(worker.send(NEEDLE, task="later", key="k", unique=True).refresh().payload)
    seen["schedule"] = json.loads(worker.schedules.run("tick").refresh().payload)
    return seen


def stored_bytes(store, path):
    """Return all that is on disk of a store: the file and its log, or a dump of the database."""
    if "://" not in store:
        files = sorted(path.parent.glob(f"{path.name}*"))
        return b"".join(each.read_bytes() for each in files if each.is_file())
    command = [programs.bin_folder() / "pg_dump", "--inserts", store]
    done = subprocess.run(command, env=programs.environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
