"""One thread beside the engine's, which makes prompts and encodes them, shortest first.

So a prompt of a megabyte keeps nobody from the next token, and a short one has to wait for one long one at most.
"""

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

IDLE_S = 10.0  # without work, after which the thread ends
Found = TypeVar("Found")


class _Work(NamedTuple):
    size: int
    number: int  # those of one size in order
    function: Callable[[], Any]
    future: "Future[Any]"


class Encoder:
    """Calls functions one after another, those with the smallest size first. For every thread."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._waiting: list[_Work] = []  # a heap
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def submit(self, size: int, function: Callable[[], Found]) -> "Future[Found]":
        """Call a function soon; the future gets what it returns or raises."""
        future: Future[Found] = Future()
        with self._news:
            heapq.heappush(self._waiting, _Work(size, next(self._numbers), function, future))
            self._news.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
                self._thread.start()
        return future

    def _run(self) -> None:
        while True:
            with self._news:
                if not self._news.wait_for(lambda: self._waiting, IDLE_S):
                    self._thread = None  # what comes next starts another
                    return
                work = heapq.heappop(self._waiting)
            if not work.future.set_running_or_notify_cancel():
                continue
            try:
                work.future.set_result(work.function())
            except Exception as error:
                work.future.set_exception(error)
            del work  # holds the model, while we wait
