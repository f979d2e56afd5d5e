"""Insert rows into a plain sqlite3 file, one commit each: what the failing disk is tried on."""

import sqlite3
import sys

connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA synchronous = FULL")
connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
for _ in range(5):
    try:
        connection.execute("INSERT INTO t VALUES (1)")
        print("stored", flush=True)
    except sqlite3.OperationalError as error:
        print(f"failed {error}", flush=True)
connection.close()
