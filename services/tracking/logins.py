"""Wrong passwords: how often they may be tried, and that they tell nobody who has a login.

A check takes 0.15 s of a core, so a few clients with a wrong password would keep everybody waiting. Each worker counts
for itself.
"""

import hmac
import secrets
import time
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import NamedTuple

from cachetools import TTLCache
from werkzeug.security import check_password_hash, generate_password_hash

REMEMBERED_S = 24 * 3600  # a login that was right: no throttle holds it up
MOST = 10_000  # of what is remembered
KEY = secrets.token_bytes(32)  # nothing that could be tried offline is kept


class Allowance(NamedTuple):
    """Wrong passwords at once, and seconds until there may be one more."""

    burst: int
    seconds: float


ONE_LOGIN = Allowance(5, 10.0)  # from one address
ONE_USER = Allowance(20, 5.0)  # from anywhere
ONE_ADDRESS = Allowance(20, 5.0)  # whomever it says to be


class Throttle:
    """Counts tries. For every thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        longest = max(item.burst * item.seconds for item in (ONE_LOGIN, ONE_USER, ONE_ADDRESS))
        self._full_at: TTLCache[tuple[str, ...], float] = TTLCache(MOST, longest, timer=clock)  # s; others are full
        self._right: TTLCache[bytes, bool] = TTLCache(MOST, REMEMBERED_S, timer=clock)

    def take(self, address: str, user: str, password: str) -> float:
        """Count a try before it is made; returns how long it has to wait instead, in s: 0 where it may be made."""
        with self._lock:
            if _digest(user, password) in self._right:
                return 0.0
            now = self._clock()
            after = {
                key: max(self._full_at.get(key, now), now) + allowance.seconds
                for key, allowance in _counted(address, user).items()
            }
            wait = max(
                after[key] - now - allowance.burst * allowance.seconds
                for key, allowance in _counted(address, user).items()
            )
            if wait > 0:
                return wait
            self._full_at.update(after)
            return 0.0

    def was_right(self, address: str, user: str, password: str) -> None:
        """Take note of a right password."""
        with self._lock:
            known = _digest(user, password) in self._right
            self._right[_digest(user, password)] = True
        if not known:
            self.give_back(address, user)

    def give_back(self, address: str, user: str) -> None:
        """Have a try not counted: it was right, or told nothing."""
        with self._lock:
            for key, allowance in _counted(address, user).items():
                if key in self._full_at:
                    self._full_at[key] -= allowance.seconds

    def was_wrong(self, user: str, password: str) -> None:
        """Forget that it was right once: the password has been changed."""
        with self._lock:
            self._right.pop(_digest(user, password), None)


def check_in_vain(password: str) -> None:
    """Take as long as a check of a known user's password."""
    check_password_hash(_of_nobody(), password)


@cache
def _of_nobody() -> str:
    return generate_password_hash(secrets.token_hex())


def _counted(address: str, user: str) -> dict[tuple[str, ...], Allowance]:
    return {
        ("login", address, user): ONE_LOGIN,
        ("user", user): ONE_USER,
        ("address", address): ONE_ADDRESS,
    }


def _digest(user: str, password: str) -> bytes:
    return hmac.new(KEY, repr((user, password)).encode("utf-8", "surrogatepass"), "sha256").digest()
