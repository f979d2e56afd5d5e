"""
Kill the web app between request and work: each order that was answered with 202 is fulfilled.

Starts `webapp.py`, places 20 orders, kills it with SIGKILL the moment the last is accepted,
starts it again, and waits until the file says that all 20 are done.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from dutiful import State, Worker

ORDERS = 20


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "orders.db"
        app = start(store)
        accepted = [place(app.port, f"teapot-{number}") for number in range(ORDERS)]
        app.process.send_signal(signal.SIGKILL)
        app.process.wait()
        looker = Worker(store)
        done = looker.counts().by_state.get(State.COMPLETED, 0)
        print(f"{len(accepted)} orders answered with 202, then kill -9; done so far: {done}")

        again = start(store)
        until = time.monotonic() + 30
        while done < ORDERS and time.monotonic() < until:
            time.sleep(0.05)
            done = looker.counts().by_state.get(State.COMPLETED, 0)
        lost = [order for order in accepted if looker.job(order).state is not State.COMPLETED]
        print(f"after the restart: {done} done, {len(lost)} lost")
        looker.stop()
        again.process.terminate()  # SIGTERM: uvicorn ends the lifespan, which stops the worker
        again.process.wait(timeout=20)
    return 1 if lost else 0


class App:
    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process, self.port = process, port


def start(store: Path) -> App:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    program = Path(__file__).with_name("webapp.py")
    environment = {**os.environ, "DUTIFUL_STORE": str(store), "PORT": str(port)}
    process = subprocess.Popen([sys.executable, program], env=environment)
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return App(process, port)
        time.sleep(0.02)
    process.kill()
    sys.exit("webapp.py did not start")


def place(port: int, item: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/orders?item={item}", method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # our own service, http only
        assert answer.status == 202
        return int(json.load(answer)["order"])


if __name__ == "__main__":
    sys.exit(main())
