"""
The buffered worker: two slots, one handler at a time, in order.

Nothing is stored: it is a queue in memory that holds at most two unfinished jobs. A third
`send` waits until one is done, or gives up after `timeout`. `stop()`, here at the end of the
`with` block, finishes what was accepted.
"""

import time

from dutiful import BufferFull, Worker

worker = Worker(":memory:", buffer=2, concurrency=1)
began = time.monotonic()


def say(what: str) -> None:
    print(f"{time.monotonic() - began:4.1f} s  {what}")


@worker.handler("number")
def handle(number: int) -> None:
    time.sleep(0.3)
    say(f"handled {number}")


def main() -> None:
    with worker:
        for number in range(5):
            worker.send(number, task="number")  # waits while two are unfinished
            say(f"sent {number}")
        try:
            worker.send(99, task="number", timeout=0.05)
        except BufferFull as error:
            say(f"refused 99: {error}")
        say("stopping")
    say("stopped: everything accepted was handled")


if __name__ == "__main__":
    main()
