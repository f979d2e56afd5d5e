"""
A web app that answers at once and works afterwards, and loses nothing in between.

    python webapp.py            serves on http://127.0.0.1:8000 (PORT=… for another)
    curl -X POST 'http://127.0.0.1:8000/orders?item=teapot'
    curl http://127.0.0.1:8000/orders/1

The jobs are in the file that DUTIFUL_STORE names, "dutiful.db" by default. `webapp_crash.py`
kills this program between request and work, and looks what becomes of the orders.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dutiful import JobNotFound, Worker

worker = Worker(concurrency=2)


@dataclass
class Order:
    item: str


@worker.handler
def fulfil(order: Order) -> str:
    time.sleep(0.2)  # the work
    print(f"fulfilled: {order.item}", flush=True)
    return f"{order.item} is on its way"


async def place(request: Request) -> JSONResponse:
    job = await worker.asend(Order(request.query_params["item"]))
    # Only now, when the order is on disk, is it promised.
    return JSONResponse({"order": job.id}, status_code=202)


async def look(request: Request) -> JSONResponse:
    try:
        record = await worker.job(request.path_params["order"]).arefresh()
    except JobNotFound:
        return JSONResponse({"error": "no such order"}, status_code=404)
    return JSONResponse({"order": record.id, "state": record.state, "attempt": record.attempt})


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    async with worker:  # starts with the server; stops, with running handlers ended, when it stops
        yield


app = Starlette(
    routes=[Route("/orders", place, methods=["POST"]), Route("/orders/{order:int}", look)], lifespan=lifespan
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), log_level="warning")
