"""
A stand-in for the worker, in plain sqlite3: it shows that the tools find losses, and no false ones.

Several threads insert and acknowledge; each insert is one commit; the log is checkpointed now and
then. Arguments: database, marks file, journal mode, synchronous, jobs per thread (0: until killed).
"""

import itertools
import os
import sqlite3
import sys
import threading

db, marks_path, journal, synchronous, per_thread = sys.argv[1:]
marks = os.open(marks_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
numbers = itertools.count()


def connect() -> sqlite3.Connection:
    connection = sqlite3.connect(db, isolation_level=None, timeout=30)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint = 20")
    return connection


def send() -> None:
    connection = connect()
    for _ in range(int(per_thread)) if int(per_thread) else itertools.count():
        number = next(numbers)
        payload = f'{{"n": {number}, "pad": "{"x" * 500}"}}'
        insert = "INSERT INTO dutiful_job (state, payload) VALUES ('pending', ?)"
        job_id = connection.execute(insert, (payload,)).lastrowid
        os.write(marks, f"ACK {job_id} {number}\n".encode())
    connection.close()


with_table = connect()
with_table.execute("CREATE TABLE dutiful_job (id INTEGER PRIMARY KEY, state TEXT, payload TEXT)")
print("ready", flush=True)
threads = [threading.Thread(target=send) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with_table.close()
