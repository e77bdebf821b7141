"""The event loop of the child's server, with threads enough for all requests that the engine may hold.

MLflow answers each request in a thread of the loop's default executor, which on two cores has six: the others would
wait where no limit, no deadline and no cancelling reaches them. uvicorn takes the loop by UVICORN_LOOP.
"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor


def create() -> asyncio.AbstractEventLoop:
    """A new event loop; of uvloop, without which MLflow's server waits 40 ms for each answer with several workers."""
    import uvloop

    limits = json.loads(os.environ.get("SERVING_MODEL_CONFIG") or "{}")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    threads = int(limits.get("max_batch", 32)) + int(limits.get("max_queue", 128))
    loop.set_default_executor(ThreadPoolExecutor(threads, "request"))
    return loop
