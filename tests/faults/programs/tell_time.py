"""For each line of input, print all clocks, as Python and SQLite see them."""

import sqlite3
import sys
import time

connection = sqlite3.connect(":memory:")
for _ in sys.stdin:
    (by_sqlite,) = connection.execute("SELECT strftime('%s', 'now')").fetchone()
    time.sleep(0.001)
    elapsed = (time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))
    print(time.time(), by_sqlite, *elapsed, flush=True)
