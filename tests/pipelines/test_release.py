from __future__ import annotations

from collections.abc import Callable

import pytest

from models.errors import Missing
from pipelines import registry, release
from pipelines.registry import CHALLENGER, CHAMPION, FALLBACK, Version
from pipelines.settings import Settings

Register = Callable[..., Version]


def aliases(settings: Settings) -> tuple[int | None, ...]:
    found = [registry.by_alias(settings, alias) for alias in (CHAMPION, FALLBACK, CHALLENGER)]
    return tuple(None if each is None else each.number for each in found)


def ledger(settings: Settings) -> list[tuple[int | None, int | None, str]]:
    return [(each.version, each.previous, each.reason) for each in release.history(settings)]


def test_promotion_makes_the_old_champion_the_fallback_and_rollback_brings_it_back(
    settings: Settings, register: Register
) -> None:
    register(1)
    assert aliases(settings) == (None, None, 1)
    release.promote(settings, 1, "first")
    assert aliases(settings) == (1, None, None)
    register(2)
    release.promote(settings, 2, "better")
    assert aliases(settings) == (2, 1, None)
    assert registry.version(settings, 2).tags["fedloop.promoted"] == "better"
    release.promote(settings, 2, "again")
    assert aliases(settings) == (2, 1, None)
    assert release.rollback(settings, "worse after all") == 1
    assert aliases(settings) == (1, None, None)
    assert registry.version(settings, 2).tags["fedloop.rolled_back"] == "worse after all"
    with pytest.raises(Missing, match="no fallback to roll back to"):
        release.rollback(settings, "twice")
    release.retire(settings, "over")
    release.retire(settings, "over")
    assert aliases(settings) == (None, None, None)
    assert ledger(settings) == [
        (1, None, "first"),
        (2, 1, "better"),
        (1, 2, "worse after all"),
        (None, 1, "over"),
    ]


def test_a_version_that_does_not_exist_changes_nothing(settings: Settings) -> None:
    with pytest.raises(Missing, match="no version 3"):
        release.promote(settings, 3, "no")
    assert ledger(settings) == []


@pytest.mark.parametrize("killed_at", range(5))
def test_a_promotion_killed_anywhere_is_finished_by_the_same_call_with_one_ledger_row(
    settings: Settings, register: Register, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    register(1)
    release.promote(settings, 1, "first")
    register(2)
    steps = 0

    class Killed(BaseException):
        pass

    def dying(name: str) -> None:
        real = getattr(registry, name)

        def step(*args: object) -> None:
            nonlocal steps
            if steps == killed_at:
                raise Killed
            steps += 1
            real(*args)

        monkeypatch.setattr(registry, name, step)

    for name in ("tag", "set_alias", "drop_alias"):
        dying(name)
    with pytest.raises(Killed) if killed_at < 4 else pytest.MonkeyPatch.context():
        release.promote(settings, 2, "better")
    # Whenever it dies, somebody serves.
    assert aliases(settings)[0] in (1, 2)
    monkeypatch.undo()
    release.promote(settings, 2, "better")
    assert aliases(settings) == (2, 1, None)
    assert ledger(settings) == [(1, None, "first"), (2, 1, "better")]
