"""One seed gives one run: the same timelines in any process, order and selection, on any number of workers."""

from __future__ import annotations

import re

import pytest

TESTS = """
import random
import time

import pytest
from celery import chord, group
from celery.exceptions import Reject, Retry

from shop import add, app, boom, download, jittery, slow

@app.task(bind=True, max_retries=20, acks_late=True)
def moody(self, n):
    time.sleep(random.choice([0, 0.1, 2]))
    if random.random() < 0.3:
        raise self.retry(countdown=random.randint(0, 9))
    if random.random() < 0.1:
        raise Reject(str(self.request.id), requeue=False)
    if random.random() < 0.2:
        raise LookupError(self.request.id, object())
    return n

@app.task
def total(parts):
    return sum(parts)

@pytest.fixture(autouse=True)
def show(request, celery_faults):
    yield
    print(f"<<{request.node.name}")
    print(celery_faults.timeline)
    print(celery_faults.dlq.reasons)
    print(">>")

@pytest.mark.celery_faults(concurrency=3)
def test_moods(celery_faults):
    for n in range(20):
        moody.apply_async((n,), priority=n % 4)
    celery_faults.worker.drain()

@pytest.mark.inject(OSError, probability=0.5, times=None, task=[jittery, download])
@pytest.mark.celery_faults(concurrency=2)
def test_jitter_and_probability(celery_faults):
    group(group(jittery.s() for _ in range(5)), download.s("x")).delay()
    celery_faults.worker.drain()

@pytest.mark.inject(ValueError, probability=0.2, times=3, task=add)
def test_chords(celery_faults):
    for _ in range(4):
        chord([add.s(n, n) for n in range(3)], total.s()).delay()
    celery_faults.worker.drain()

@pytest.mark.parametrize("n", range(3))
def test_ties(celery_faults, n):
    for seconds in (3, 1, 3, 2, 1):
        slow.apply_async((seconds,), countdown=seconds)
    add.apply_async((1, 2), countdown=3, queue="other")
    celery_faults.worker.drain()
"""
SEED = "--celery-faults-seed=20"


def timelines(result):
    """What each test printed, by its name."""
    found = re.findall(r"<<(\S+)\n(.*?)>>", result.stdout.str(), flags=re.DOTALL)
    assert len(found) == len({name for name, _ in found})
    return dict(found)


@pytest.fixture
def whole(shop, monkeypatch):
    shop.test(TESTS)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    result = shop.armed("-rA", SEED, subprocess=True)
    result.assert_outcomes(passed=6)
    return timelines(result)


def test_one_seed_gives_one_timeline(shop, whole, monkeypatch):
    assert len(whole) == 6
    for kind in ("fault fired", "retried", "rejected", "failed", "time jumped", "dead-lettered"):
        assert any(kind in timeline for timeline in whole.values()), "the tests are about something"
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    for arguments in (
        [],
        ["-n2"],
        ["-p", "no:randomly", "-k", "chords or ties"],
        [f"test_shop.py::{name}" for name in reversed(whole)],
    ):
        again = timelines(shop.armed("-rA", SEED, *arguments, subprocess=True))
        assert again == {name: whole[name] for name in again}
        assert len(again) == (4 if "-k" in arguments else 6)


def test_another_seed_gives_another(shop, whole):
    other = timelines(shop.armed("-rA", "--celery-faults-seed=21", subprocess=True))
    assert set(other) == set(whole)
    for name in ("test_moods", "test_jitter_and_probability"):
        assert other[name] != whole[name]


def test_each_test_has_a_stream_of_its_own(shop):
    shop.test(
        """
import pytest
from shop import jittery

@pytest.mark.inject(OSError, times=None)
@pytest.mark.parametrize("n", range(2))
def test_it(retry_recorder, n):
    jittery.delay().get(propagate=False)
    print("delays:", *retry_recorder.delays)
"""
    )
    result = shop.armed("-rA", SEED)
    drawn = [line for line in result.outlines if line.startswith("delays:")]
    assert len(set(drawn)) == 2
