"""
Jobs beside your own tables, in one SQLite file: one commit for both.

1. `send(…, transaction=connection)`: the job exists if, and only if, your transaction commits.
2. `ctx.transaction()`: what the handler writes and the job's completion commit together, once.
"""

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dutiful import Context, Worker


@dataclass
class Ship:
    order_id: int


def ship(job: Ship, ctx: Context) -> None:
    # Whatever takes long comes first: the block below holds the store's write lock.
    with ctx.transaction() as db:
        db.execute("UPDATE orders SET state = 'shipped', times = times + 1 WHERE id = ?", (job.order_id,))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.db"
        worker = Worker(path, handlers={Ship: ship})
        with worker, closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT, state TEXT, times INTEGER)")

            with db:  # sqlite3's own: commits at the end, rolls back on an exception
                db.execute("INSERT INTO orders VALUES (1, 'teapot', 'new', 0)")
                job = worker.send(Ship(1), transaction=db)
            job.wait(timeout=10)
            print("committed:  ", db.execute("SELECT * FROM orders").fetchall(), "and the job is", job.state)

            try:
                with db:
                    db.execute("INSERT INTO orders VALUES (2, 'kettle', 'new', 0)")
                    worker.send(Ship(2), transaction=db)
                    raise RuntimeError("the card was refused")  # noqa: TRY301  # it stands for your code
            except RuntimeError as error:
                print("rolled back:", error)
            rows = db.execute("SELECT * FROM orders").fetchall()
            print("still:      ", rows, "and", len(worker.jobs()), "job in all")


if __name__ == "__main__":
    main()
