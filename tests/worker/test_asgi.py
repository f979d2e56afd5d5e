"""Under an ASGI server: the worker lives in the lifespan, and a SIGTERM loses nothing."""

import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from dutiful import State
from tests.worker.tools import WAIT_S, finished, script

SERVER = """
    import contextlib, socket
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    worker = Worker(sys.argv[1], grace_s=15)

    @worker.handler("slow")
    async def slow(n):
        await asyncio.sleep(0.2)
        return n

    @worker.handler("thread")
    def thread(n):
        time.sleep(0.2)
        return n

    @contextlib.asynccontextmanager
    async def by_async_with(app):
        async with worker:
            yield

    @contextlib.asynccontextmanager
    async def by_hand(app):
        worker.start()
        yield
        worker.stop()

    async def send(request):
        task = "slow" if request.query_params["kind"] == "async" else "thread"
        job = await worker.asend(1, task=task)
        return PlainTextResponse(str(job.id))

    app = Starlette(routes=[Route("/send", send)], lifespan=globals()[sys.argv[2]])
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    say("port", listening.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run(sockets=[listening])
"""


def get(port, kind):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/send?kind={kind}", timeout=WAIT_S) as answer:
        return int(answer.read())


@pytest.mark.parametrize("lifespan", ["by_async_with", "by_hand"])
def test_a_sigterm_ends_it_and_what_was_accepted_is_done_or_stored(tmp_path, make, path, lifespan):
    with script(tmp_path, SERVER, path, lifespan, env={"PYTHONWARNINGS": "default"}) as server:
        port = int(server.wait_for("port").split()[1])
        with ThreadPoolExecutor(4) as clients:
            ids = list(clients.map(get, [port] * 40, ["async", "thread"] * 20))

        server.signal(signal.SIGTERM)

        assert server.wait() in (0, -signal.SIGTERM)
    assert "Traceback" not in server.errors
    assert "ResourceWarning" not in server.errors
    client = make(path)
    records = [client.job(job_id).refresh() for job_id in ids]
    assert {record.state for record in records} <= {State.COMPLETED, State.PENDING}
    assert all(not record.failures and not record.crashes for record in records)
    assert client.workers() == []

    client.handlers.update({"slow": lambda n: n, "thread": lambda n: n})
    with client:
        assert {finished(client.job(job_id)).state for job_id in ids} == {State.COMPLETED}
