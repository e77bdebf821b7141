"""Wrong passwords: a few are free, then they are slow, and those who were right do not notice."""

from services.tracking import logins
from services.tracking.logins import ONE_ADDRESS, ONE_LOGIN, ONE_USER, Throttle


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def wrong(throttle: Throttle, address: str, user: str, times: int) -> list[float]:
    found = []
    for number in range(times):
        wait = throttle.take(address, user, f"wrong {number}")
        if not wait:
            throttle.was_wrong(user, f"wrong {number}")
        found.append(wait)
    return found


def test_some_wrong_passwords_are_free_and_then_one_at_a_time() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    assert wrong(throttle, "1.1.1.1", "ada", ONE_LOGIN.burst) == [0] * ONE_LOGIN.burst
    [wait] = wrong(throttle, "1.1.1.1", "ada", 1)
    assert wait == ONE_LOGIN.seconds
    clock.now += ONE_LOGIN.seconds
    assert [bool(item) for item in wrong(throttle, "1.1.1.1", "ada", 2)] == [False, True]


def test_an_address_and_a_user_have_limits_of_their_own() -> None:
    throttle = Throttle(Clock())
    assert not any(wait for n in range(ONE_ADDRESS.burst) for wait in wrong(throttle, "1.1.1.1", f"user {n}", 1))
    assert throttle.take("1.1.1.1", "another", "x")
    assert not throttle.take("2.2.2.2", "another", "x")
    assert not any(wait for n in range(ONE_USER.burst) for wait in wrong(throttle, f"3.3.3.{n}", "ada", 1))
    assert throttle.take("4.4.4.4", "ada", "x")
    assert not throttle.take("4.4.4.4", "bob", "x")


def test_who_was_right_is_not_held_up() -> None:
    throttle = Throttle(Clock())
    for _ in range(100):
        assert not throttle.take("1.1.1.1", "ada", "right")
        throttle.was_right("1.1.1.1", "ada", "right")
    wrong(throttle, "1.1.1.1", "ada", 50)
    assert not throttle.take("1.1.1.1", "ada", "right")
    throttle.was_wrong("ada", "right")  # it has been changed
    assert throttle.take("1.1.1.1", "ada", "right")


def test_what_told_nothing_is_not_counted() -> None:
    throttle = Throttle(Clock())
    for _ in range(100):
        assert not throttle.take("1.1.1.1", "ada", "x")
        throttle.give_back("1.1.1.1", "ada")


def test_no_password_is_kept() -> None:
    throttle = Throttle(Clock())
    throttle.was_right("1.1.1.1", "ada", "a-password")
    assert "a-password" not in repr(vars(throttle)) + repr(list(throttle._right))


def test_a_password_of_nobody_is_checked_too(monkeypatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(logins, "check_password_hash", lambda kept, given: checked.append(given))
    logins.check_in_vain("x")
    assert checked == ["x"]
