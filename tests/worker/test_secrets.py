"""What is secret is masked wherever a job is shown, and given to the handler as it was sent."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from dutiful import Backoff, ConfigError, Context, JobFailed, Retry, Secret, State
from dutiful.events import Event
from tests.worker.tools import finished, result, until

ONCE = Retry(max_attempts=1, backoff=Backoff(first_s=0.001))
HUSH = "hush-4111"


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    """A file, memory, and a database on a server."""
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@pytest.fixture(params=["in clear", "encrypted"])
def key(request):
    """Masks are the same whether the store is encrypted or not."""
    return False if request.param == "in clear" else "k" * 43


@dataclass
class Login:
    user: str
    password: Secret[str]


def child(login: Login) -> str:
    return login.password.reveal()


def fail_in_child(payload: str) -> None:
    raise ValueError(payload)


def shown(worker):
    """Return all that the worker shows of its jobs."""
    records = [worker.job(record.id).refresh() for record in worker.jobs()]
    return repr([worker.jobs(), records, [worker.job(record.id) for record in records]])


# --- fields --------------------------------------------------------------------------------------


def test_a_secret_field_is_given_to_the_handler_and_masked_elsewhere(started, store, key, caplog):
    worker = started(store, encrypt=key, retry=ONCE)

    @worker.handler
    def log_in(login: Login) -> Login:
        logging.getLogger("dutiful").warning("logging in %s", login)
        if login.user == "eve":
            raise PermissionError(f"not {login}")
        assert login.password.reveal() == HUSH
        return login

    good = worker.send(Login("ada", Secret(HUSH)))
    bad = worker.send(Login("eve", Secret(HUSH)))

    assert result(good) == Login("ada", Secret(HUSH))
    assert finished(bad).errors[0].message == "not Login(user='eve', password=Secret('***'))"
    assert '"password":"***"' in shown(worker)
    assert HUSH not in shown(worker)
    assert HUSH not in caplog.text
    assert good.refresh(reveal=True).payload == f'{{"user":"ada","password":"{HUSH}"}}'


def test_a_parameter_of_a_task_can_be_secret(started, store):
    worker = started(store)

    @worker.task
    def connect(host: str, password: Secret[str]) -> int:
        return len(host + password.reveal())

    job = connect.send("db", Secret(HUSH))

    assert result(job) == len("db" + HUSH)
    assert job.refresh().payload == '{"host":"db","password":"***"}'


def test_a_handler_in_a_child_process_gets_the_value(started, path, key):
    worker = started(path, encrypt=key)
    worker.handler(process=True)(child)

    assert result(worker.send(Login("ada", Secret(HUSH)))) == HUSH


# --- whole payloads ------------------------------------------------------------------------------


def test_a_secret_task_is_masked_as_a_whole(started, store, key, caplog):
    worker = started(store, encrypt=key, retry=ONCE)
    events = []
    worker.on(Event, events.append)

    @worker.handler("login", secret=True)
    def log_in(payload: dict[str, str], ctx: Context):
        ctx.step("first", dict, payload)
        if payload["user"] == "eve":
            raise KeyError(payload["password"])
        return payload

    good = worker.send({"user": "ada", "password": HUSH}, task="login")
    bad = worker.send({"user": "eve", "password": HUSH}, task="login")

    assert result(good) == {"user": "ada", "password": HUSH}
    record = finished(bad)
    assert record.state is State.DEAD
    assert (record.errors[0].type, record.errors[0].message) == ("KeyError", "***")
    assert "in log_in\nKeyError: ***" in record.errors[0].traceback  # where it was is no secret
    with pytest.raises(JobFailed, match=r"KeyError: \*\*\*"):
        bad.result(0)
    assert good.refresh().payload == good.refresh().result == '"***"'
    for told in (shown(worker), caplog.text, repr(events)):
        assert HUSH not in told
    assert good.refresh(reveal=True).result == f'{{"user":"ada","password":"{HUSH}"}}'


def test_a_single_job_can_be_secret(started, store, key):
    worker = started(store, encrypt=key, retry=ONCE)
    worker.handlers["t"] = lambda text: text

    @worker.handler("fail")
    def fail(text: str) -> int:
        return int(text)

    hidden, open_ = worker.send(HUSH, task="t", secret=True), worker.send("open", task="t")
    failed = worker.send(HUSH, task="fail", secret=True)
    many = worker.send_many([HUSH] * 3, task="t", secret=True, key="k")

    assert [result(job) for job in (hidden, open_, *many)] == [HUSH, "open", HUSH, HUSH, HUSH]
    assert finished(failed).errors[0].message == "***"
    assert HUSH not in shown(worker)
    assert '"open"' in shown(worker)


def test_a_secret_job_in_a_child_process_is_masked_too(started, path, caplog):
    worker = started(path, retry=ONCE)
    worker.handler("t", process=True, secret=True)(fail_in_child)

    record = finished(worker.send(HUSH, task="t"))

    assert record.errors[0].type == "ValueError"
    assert HUSH not in shown(worker) + caplog.text


def test_a_secret_payload_that_cannot_be_read_is_not_told(started, store, caplog):
    worker = started(store)
    worker.handler("t", secret=True)(lambda: None)

    record = finished(worker.send({"x": HUSH}, task="t"))

    assert (record.state, record.errors[0].type) == (State.DEAD, "NotDecodable")
    assert HUSH not in shown(worker) + caplog.text


def test_a_task_that_is_no_longer_secret_still_reads_its_jobs(started, store):
    worker = started(store)
    worker.handler("t", secret=True, queue="other")(lambda payload: None)
    job = worker.send({"x": 1}, task="t", queue="default", delay=3600)
    del worker.handlers["t"]
    worker.handlers["t"] = lambda payload: payload

    with worker.opened().sql() as sql:
        sql.change("UPDATE {job} SET due_at = 0")
    worker.nudge()

    assert result(job) == {"x": 1}


def test_who_follows_a_secret_job_gets_its_result(started, store, key):
    worker = started(store, encrypt=key)
    worker.handler("first", secret=True)(lambda payload: payload)
    worker.handlers["then"] = lambda payload, ctx: ctx.after

    first = worker.send(HUSH, task="first")

    assert result(worker.send(None, task="then", after=first)) == [HUSH]


def test_a_caller_without_the_handler_gets_the_result_too(started, make, shared):
    worker = started(shared)
    worker.handler("t", secret=True)(lambda payload: payload)
    client = make(shared, name="client")

    job = client.send(HUSH, task="t", secret=True)

    assert result(job) == HUSH
    assert until(lambda: job.refresh().result) == '"***"'


def test_secret_and_unique_and_a_limit_go_together(make, store):
    worker = make(store)

    one = worker.send({"x": HUSH}, task="t", secret=True, unique=True)

    assert worker.send({"x": HUSH}, task="t", secret=True, unique=True).id == one.id
    assert HUSH not in shown(worker)


def test_a_wrong_option_is_refused(make, path):
    with pytest.raises(ConfigError, match="did you mean secret"):
        make(path).handler("t", secrets=True)(lambda payload: None)
