"""scripts/postgres: a server for a person, or for a program that reads the URL from our first line."""

import signal
import sys

from tests.servers.postgres import Server


def main() -> None:
    """Print the URL, and keep the server until somebody has had enough."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Server.create() as server:
            server.start()
            print(server.url(), flush=True)
            print("It runs until Ctrl-C; all that is in it goes then.", file=sys.stderr, flush=True)
            if sys.stdin.isatty():
                signal.pause()
            while sys.stdin.buffer.read(4096):
                pass
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
