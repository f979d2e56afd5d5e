"""
Retries against a flaky service: what happens next depends on the exception.

A small HTTP service in this process answers 503 twice, then 200; or 429 with a Retry-After;
or 404 for ever. Each of these asks for another policy.
"""

import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.error import HTTPError
from urllib.request import urlopen

from dutiful import Backoff, JobFailed, Retry, Worker


class Flaky(BaseHTTPRequestHandler):
    calls: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.calls[self.path] += 1
        match self.path:
            case "/busy" if self.calls[self.path] == 1:
                self.answer(429, {"Retry-After": "1"})
            case "/shaky" if self.calls[self.path] <= 2:
                self.answer(503)
            case "/gone":
                self.answer(404)
            case _:
                self.answer(200, body=b"done")

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, _format: str, *args: object) -> None:
        print(f"  service: {self.path} -> {args[1]}")


def next_try(error: BaseException, failures: int) -> float | bool | None:
    """Say when to try again: seconds, False for never, None for the backoff."""
    if isinstance(error, HTTPError):
        if error.code == 429:
            return float(error.headers.get("Retry-After", 60))  # the service has said when
        if 400 <= error.code < 500:
            return False  # our mistake: it will not get better
    print(f"  failure {failures}: {error}")
    return None


@dataclass
class Fetch:
    url: str


def fetch(job: Fetch) -> str:
    with urlopen(job.url, timeout=5) as response:  # noqa: S310  # our own service, http only
        return str(response.read().decode())


def main() -> None:
    service = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{service.server_port}"
    policy = Retry(max_attempts=5, backoff=Backoff(first_s=0.2), decide=next_try)

    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(Path(folder) / "jobs.db", handlers={Fetch: fetch}, retry=policy) as worker,
    ):
        jobs = {name: worker.send(Fetch(f"{base}/{name}")) for name in ("shaky", "busy", "gone")}
        for name, job in jobs.items():
            try:
                print(f"{name}: {job.result(timeout=20)!r} in attempt {job.attempt}")
            except JobFailed as error:
                print(f"{name}: {error.state} after attempt {job.attempt}, {error.error.splitlines()[0]}")
    service.shutdown()
    service.server_close()


if __name__ == "__main__":
    main()
