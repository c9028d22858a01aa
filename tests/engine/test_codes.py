"""The copies of code objects in tracebacks: one of each, and the same tracebacks as without."""

from __future__ import annotations

import gc
import pickle
import sys
import traceback

import pytest
from billiard.einfo import ExceptionInfo, _Code, _Frame

from pytest_celery_faults import codes
from pytest_celery_faults.codes import copied_once, send


def made(source="def fail():\n    raise LookupError('no such thing')\n"):
    namespace = {}
    exec(compile(source, "made.py", "exec"), namespace)  # noqa: S102
    return namespace["fail"]


def einfo_of(function):
    try:
        function()
    except LookupError:
        return ExceptionInfo()
    raise AssertionError("it did not fail")


SEEN = []


class Noted:
    def __reduce__(self):
        note("sent")
        return note, ("received",)


def note(what):
    SEEN.append(what)


@pytest.fixture
def one_of_each(monkeypatch):
    monkeypatch.setattr(_Frame, "Code", staticmethod(copied_once(_Code)))


def test_there_is_one_copy_of_each_code_object(one_of_each):
    fail = made()
    first, second = einfo_of(fail), einfo_of(fail)
    assert first.tb.tb_next.tb_frame.f_code is second.tb.tb_next.tb_frame.f_code
    assert first.tb is not second.tb


def test_equal_code_of_two_files_has_two_copies():
    copy = copied_once(_Code)
    one, other = (compile("1 / 0", name, "exec") for name in ("one.py", "other.py"))
    assert (copy(one).co_filename, copy(other).co_filename) == ("one.py", "other.py")
    assert copy(one) is copy(one)


def test_the_copy_of_code_that_is_gone_goes_too():
    def how_many():
        gc.collect()
        return len(codes._copies)

    before = how_many()
    fail = made()
    copied_once(_Code)(fail.__code__)
    assert how_many() == before + 1
    del fail
    assert how_many() == before


def test_a_traceback_is_what_it_is_without(one_of_each, monkeypatch):
    fail = made()
    ours = send((False, einfo_of(fail)))()[1]
    monkeypatch.undo()
    theirs = pickle.loads(pickle.dumps(einfo_of(fail)))
    assert ours.traceback == theirs.traceback
    assert str(ours.exception) == str(theirs.exception)
    mine, real = ours.tb.tb_next.tb_frame.f_code, theirs.tb.tb_next.tb_frame.f_code
    assert vars(mine) == vars(real)
    assert traceback.format_tb(ours.tb.tb_next) == traceback.format_tb(theirs.tb.tb_next)
    if sys.version_info >= (3, 11):
        assert list(mine.co_positions()) == list(fail.__code__.co_positions())


def test_all_but_code_is_pickled_when_it_is_sent_and_read_when_it_is_received():
    SEEN.clear()
    receive = send(Noted())
    assert SEEN == ["sent"]
    receive()
    assert SEEN == ["sent", "received"]
    with pytest.raises((AttributeError, pickle.PicklingError)):
        send(lambda: None)
