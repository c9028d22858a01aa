"""Shows the clock to everybody else: freezegun's date classes, and the time functions wherever they are bound.

freezegun's own ``freeze_time`` does not fit here: it scans every loaded module at each start and stop, its ignore
list works by prefix and by stack frames, its ``now()`` is not local time, and it knows nothing of ``sleep`` or of
default arguments. So its classes are shown by this module, which remembers
each place where a time function is bound and looks only into modules it has not seen.

Virtual time is what the test's thread sees, and the simulation's where that is another one. All other threads, and the
modules in `_REAL_TIME`, see real time.
"""

from __future__ import annotations

import datetime as _datetime
import sys
import threading
import time as _time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import freezegun.api as _freezegun
from freezegun.api import FakeDate, FakeDatetime

from . import replaced
from .errors import hide_ours
from .freezes import STACKS, Freezes, pickle_as_freezegun_does, pickle_as_usual
from .simulation import Simulation

__tracebackhide__ = hide_ours

_EPOCH = _freezegun.real_datetime(1970, 1, 1)

_FUNCTIONS = (
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
    "localtime", "gmtime", "asctime", "ctime", "strftime", "sleep",
)  # fmt: skip
# Of freezegun, for what it replaces: this module may be imported in a freeze.
_REAL = {name: getattr(_freezegun, f"real_{name}", None) or getattr(_time, name) for name in _FUNCTIONS}

#: Packages and modules that go on in real time: they wait for, or measure, something that is not Celery.
_REAL_TIME = frozenset(
    {
        "_pytest", "pytest", "pluggy", "xdist", "execnet", "pytest_timeout", "threading", "_threading_local", "queue",
        "multiprocessing", "concurrent", "selectors", "socket", "ssl", "subprocess", "asyncio", "anyio", "trio",
        "timeit", "cProfile", "pstats", "profile", "faulthandler", "coverage", "pytest_cov", "hypothesis", "freezegun",
        "pytest_celery_faults", "time", "datetime", "_strptime", "_pydatetime", "tempfile", "uuid",
    }
)  # fmt: skip


#: Calls `sleep(0)` after each result message, to give way to other threads. There are none: it costs a switch.
_GIVES_WAY = "celery.backends.asynchronous"


class _RealTime(types.ModuleType):
    """Stands in for the module ``time`` in modules that keep real time and call ``time.monotonic()``."""


_real_time_module = _RealTime("time")
vars(_real_time_module).update({**vars(_time), **_REAL})


class _Shown:
    """The functions and classes that the modules get, for one simulation."""

    def __init__(self, simulation: Simulation, freezes: Freezes) -> None:
        self.simulation = simulation
        self.freezes = freezes
        self.clock = clock = simulation.clock
        threads = simulation.threads
        ident = threading.get_ident
        real = _REAL

        def time() -> float:
            return clock.time() if ident() in threads else cast(float, real["time"]())

        def time_ns() -> int:
            return clock.time_ns() if ident() in threads else cast(int, real["time_ns"]())

        def monotonic() -> float:
            return clock.monotonic() if ident() in threads else cast(float, real["monotonic"]())

        def monotonic_ns() -> int:
            return clock.monotonic_ns() if ident() in threads else cast(int, real["monotonic_ns"]())

        def perf_counter() -> float:
            return clock.monotonic() if ident() in threads else cast(float, real["perf_counter"]())

        def perf_counter_ns() -> int:
            return clock.monotonic_ns() if ident() in threads else cast(int, real["perf_counter_ns"]())

        def localtime(seconds: float | None = None) -> _time.struct_time:
            if seconds is None and ident() in threads:
                seconds = clock.time()
            return cast(_time.struct_time, real["localtime"](seconds))

        def gmtime(seconds: float | None = None) -> _time.struct_time:
            if seconds is None and ident() in threads:
                seconds = clock.time()
            return cast(_time.struct_time, real["gmtime"](seconds))

        def asctime(t: Any = None) -> str:
            return cast(str, real["asctime"](localtime() if t is None else t))

        def ctime(seconds: float | None = None) -> str:
            if seconds is None and ident() in threads:
                seconds = clock.time()
            return cast(str, real["ctime"](seconds))

        def strftime(format: str, t: Any = None) -> str:
            return cast(str, real["strftime"](format, localtime() if t is None else t))

        def sleep(seconds: float) -> None:
            if ident() in threads and not simulation.closing:
                simulation.sleep(seconds)
            else:
                real["sleep"](seconds)

        def give_way(seconds: float) -> None:
            if seconds:
                sleep(seconds)

        functions: tuple[Callable[..., Any], ...] = (
            time, time_ns, monotonic, monotonic_ns, perf_counter, perf_counter_ns,
            localtime, gmtime, asctime, ctime, strftime, sleep, give_way,
        )  # fmt: skip
        self.functions = {function.__name__: function for function in functions}
        for name, function in self.functions.items():
            if name in real:
                vars(function)["stands_for"] = real[name]

    def naive_utc(self) -> _datetime.datetime:
        """freezegun's time factory: it is asked by everything of freezegun's own."""
        if threading.get_ident() not in self.simulation.threads:
            return _freezegun.real_datetime.now(_datetime.timezone.utc).replace(tzinfo=None)
        return _EPOCH + _datetime.timedelta(microseconds=self.clock.now_us)

    @property
    def offset(self) -> _datetime.timedelta | None:
        """What is added to UTC for local time; ``None`` where that is the time zone's business."""
        return self.freezes.offset if threading.get_ident() in self.simulation.threads else None

    def tick(self, delta: Any = None) -> None:
        raise TypeError("the clock of a celery_faults test is moved by celery_faults.worker.advance()")

    move_to = tick

    def __call__(self) -> _datetime.datetime:
        return self.naive_utc()


def _fake(value: _datetime.datetime) -> FakeDatetime:
    return FakeDatetime(
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond,
        value.tzinfo, fold=value.fold,
    )  # fmt: skip


def _offset() -> _datetime.timedelta | None:
    return cast(_Shown, _freezegun.freeze_factories[-1]).offset


def _local(naive_utc: _datetime.datetime) -> _datetime.datetime:
    """Local time at that instant: of the process's time zone, summer time included, or what a freeze takes for it."""
    offset = _offset()
    if offset is not None:
        return naive_utc + offset
    whole = naive_utc.replace(microsecond=0)
    seconds = (whole - _EPOCH) // _datetime.timedelta(seconds=1)
    return _freezegun.real_datetime.fromtimestamp(seconds).replace(microsecond=naive_utc.microsecond)


def _now(cls: type[FakeDatetime], tz: _datetime.tzinfo | None = None) -> FakeDatetime:
    current = _freezegun.get_current_time()
    if tz is None:
        return _fake(_local(current))
    return _fake(tz.fromutc(current.replace(tzinfo=tz)))


def _fromtimestamp(cls: type[FakeDatetime], t: float, tz: _datetime.tzinfo | None = None) -> FakeDatetime:
    offset = _offset()
    if tz is None and offset is not None:
        return _fake(_freezegun.real_datetime.fromtimestamp(t, _datetime.timezone.utc).replace(tzinfo=None) + offset)
    return _fake(_freezegun.real_datetime.fromtimestamp(t, tz))


def _timestamp(self: FakeDatetime) -> float:
    offset = _offset()
    if self.tzinfo is None and offset is not None:
        return (self - offset).replace(tzinfo=_datetime.timezone.utc).timestamp()
    return _freezegun.real_datetime.timestamp(self)


def _astimezone(self: FakeDatetime, tz: _datetime.tzinfo | None = None) -> FakeDatetime:
    return _fake(_freezegun.real_datetime.astimezone(self, tz))


def _today(cls: type[FakeDate]) -> FakeDate:
    local = _local(_freezegun.get_current_time())
    return FakeDate(local.year, local.month, local.day)


_CORRECTED: tuple[tuple[replaced.Replaced, Any], ...] = (
    (replaced.DATETIME_NOW, classmethod(_now)),
    (replaced.DATETIME_FROMTIMESTAMP, classmethod(_fromtimestamp)),
    (replaced.DATETIME_TIMESTAMP, _timestamp),
    (replaced.DATETIME_ASTIMEZONE, _astimezone),
    (replaced.DATE_TODAY, classmethod(_today)),
)

# What a place is bound to: the name of a time function, or one of the two date classes. A freeze of freezegun's from
# before the test has its own in all places, and a module may have been imported in it.
_REAL_BY_KEY: dict[str, Any] = {
    **_REAL,
    "give_way": _REAL["sleep"],
    "date": _freezegun.real_date,
    "datetime": _freezegun.real_datetime,
}
_FROZEN_BY_KEY: dict[str, Any] = {
    **{name: getattr(_freezegun, f"fake_{name}") for name in _FUNCTIONS if hasattr(_freezegun, f"fake_{name}")},
    "date": FakeDate,
    "datetime": FakeDatetime,
}
_KEYS = {id(it): key for by_key in (_REAL_BY_KEY, _FROZEN_BY_KEY) for key, it in by_key.items() if key != "give_way"}
#: Neither freezegun nor this package is shown anything.
_LEFT_ALONE = ("freezegun", "pytest_celery_faults")


def _functions(namespace: dict[str, Any], module_name: str) -> list[types.FunctionType]:
    """The functions of a module and the methods of its classes."""
    found: list[types.FunctionType] = []
    for value in list(namespace.values()):
        # Not isinstance: it asks a lazy object for its class, which wakes it.
        if type(value) is types.FunctionType:
            found.append(value)
        elif issubclass(type(value), type) and value.__module__ == module_name:
            found += [f for f in vars(value).values() if isinstance(f, types.FunctionType)]
    return found


class _Places:
    """Where time is bound in one module: names, default arguments, and for real-time modules the module ``time``."""

    __slots__ = ("defaults", "is_pytests", "keeps_real_time", "module_names", "names", "namespace")

    def __init__(self, module: types.ModuleType) -> None:
        self.namespace = namespace = vars(module)
        #: Name, key, and the key of what is shown there.
        self.names: list[tuple[str, str, str]] = []
        self.module_names: list[str] = []
        self.defaults: list[types.FunctionType] = []
        package = module.__name__.partition(".")[0]
        self.keeps_real_time: bool = package in _REAL_TIME
        self.is_pytests: bool = package == "_pytest"
        if package in _LEFT_ALONE:
            return
        knows_time = False
        for name, value in list(namespace.items()):
            key = _KEYS.get(id(value))
            if key is not None:
                knows_time = True
                gives_way = key == "sleep" and module.__name__ == _GIVES_WAY
                self.names.append((name, key, "give_way" if gives_way else key))
            elif value is _time:
                knows_time = True
                if self.keeps_real_time:
                    self.module_names.append(name)
            elif value is _datetime:
                knows_time = True
        if knows_time and not self.keeps_real_time:
            self.defaults = [
                function
                for function in _functions(namespace, module.__name__)
                if any(id(default) in _KEYS for default in function.__defaults__ or ())
                or any(id(default) in _KEYS for default in (function.__kwdefaults__ or {}).values())
            ]

    def __bool__(self) -> bool:
        return bool(self.names or self.module_names or self.defaults)


_scanned: dict[str, types.ModuleType | None] = {}
_places: dict[str, _Places] = {}
# The modules when they were scanned last; all of them are in `_scanned`, so that no other has the address of one.
_addresses: list[int] = []


def _scan() -> None:
    """Look into modules that are new, or were loaded again, since the last time."""
    modules = sys.modules
    addresses = list(map(id, modules.values()))
    if addresses == _addresses:
        return
    _addresses[:] = addresses
    for name, module in list(modules.items()):
        if name in _scanned and _scanned[name] is module:
            continue
        _scanned[name] = module
        _places.pop(name, None)
        if not isinstance(getattr(module, "__name__", None), str) or not hasattr(module, "__dict__"):
            continue  # people put all sorts of things into sys.modules
        found = _Places(module)
        if found:
            _places[name] = found
    for name in _scanned.keys() - modules.keys():
        _scanned.pop(name)
        _places.pop(name, None)


class _Changes:
    """What stands somewhere in place of what stood there, until it is undone."""

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def set(self, owner: Any, name: str, value: Any, original: Any) -> None:
        self._undo.append((setattr, (owner, name, original)))
        setattr(owner, name, value)

    def set_item(self, namespace: dict[str, Any], name: str, value: Any) -> None:
        self._undo.append((namespace.__setitem__, (name, namespace[name])))
        namespace[name] = value

    def set_defaults(self, function: types.FunctionType, values: dict[str, Any]) -> None:
        positional, keyword = function.__defaults__, function.__kwdefaults__
        if positional is not None:
            self._undo.append((setattr, (function, "__defaults__", positional)))
            function.__defaults__ = tuple(values.get(_KEYS.get(id(d), ""), d) for d in positional)
        if keyword is not None:
            self._undo.append((setattr, (function, "__kwdefaults__", keyword)))
            function.__kwdefaults__ = {k: values.get(_KEYS.get(id(d), ""), d) for k, d in keyword.items()}

    def undo(self) -> None:
        while self._undo:
            restore, args = self._undo.pop()
            restore(*args)


class Freeze:
    """Shows the clock of a simulation, from ``start()`` to ``finish()``."""

    def __init__(self, simulation: Simulation, freezes: Freezes) -> None:
        self._freezes = freezes
        self._shown = _Shown(simulation, freezes)
        self._changes = _Changes()
        self._taken_off = _Changes()
        self._modules: set[str] = set()
        self._modules_when_shown: set[str] = set()
        self.active: bool = False
        self._over = False

    def start(self) -> None:
        if self.active or self._over:
            return
        _scan()
        if self._shown.clock.virtual:
            self._take_off()
        self.active = True
        self._modules_when_shown = set(sys.modules)
        self._modules = self._modules or self._modules_when_shown
        if self._shown.clock.virtual:
            self._show_virtual_time()
        else:
            self._show({name: self._shown.functions[name] for name in ("sleep", "give_way")})

    def _take_off(self) -> None:
        """Put the real names wherever a freeze of freezegun's has its own."""
        if self._freezes.take_over():
            frozen = {key: self._freezes.as_before(fake) for key, fake in _FROZEN_BY_KEY.items()}
            for places in _places.values():
                # A duration that pytest measures begins before the test and ends after it.
                values = frozen if places.is_pytests else _REAL_BY_KEY
                for name, key, _ in places.names:
                    if places.namespace.get(name) is _FROZEN_BY_KEY.get(key, places):
                        self._taken_off.set_item(places.namespace, name, values[key])
                for function in places.defaults:
                    self._taken_off.set_defaults(function, _REAL_BY_KEY)

    def _show_virtual_time(self) -> None:
        for stack, top in zip(STACKS, (self._shown, _datetime.timedelta(0), (), False), strict=True):
            stack.append(top)
        pickle_as_freezegun_does()
        for what, value in (*_CORRECTED, *self._freezes.replacements()):
            self._changes.set(what.owner, what.name, value, what.original)
        self._changes.set(_datetime, "datetime", FakeDatetime, _datetime.datetime)
        self._changes.set(_datetime, "date", FakeDate, _datetime.date)
        self._show({**self._shown.functions, "date": FakeDate, "datetime": FakeDatetime})

    def _show(self, fakes: dict[str, Any]) -> None:
        for name in _FUNCTIONS:
            if name in fakes:
                self._changes.set(_time, name, fakes[name], getattr(_time, name))
        for places in _places.values():
            self._show_in(places, fakes)

    def _show_in(self, places: _Places, fakes: dict[str, Any]) -> None:
        namespace = places.namespace
        if places.keeps_real_time:
            for name in places.module_names:
                if namespace.get(name) is _time:
                    self._changes.set_item(namespace, name, _real_time_module)
            return
        for name, key, shown in places.names:
            if shown in fakes and namespace.get(name) is _REAL_BY_KEY[key]:
                self._changes.set_item(namespace, name, fakes[shown])
        for function in places.defaults:
            self._changes.set_defaults(function, fakes)

    def stop(self) -> None:
        if not self.active:
            return
        self.active = False
        self._changes.undo()
        if self._shown.clock.virtual:
            for stack in STACKS:
                stack.pop()
            pickle_as_usual()
        self._restore_new_modules()

    def finish(self) -> None:
        """Stop for good: the end of a block in real time does not start it again."""
        if not self._over:
            self._over = True
            self.lend_back()

    def lend_back(self) -> None:
        """Give the time back, to freezegun where it had it before, until the next `start`."""
        self.stop()
        self._taken_off.undo()
        if self._freezes.give_back():
            frozen = {id(_REAL_BY_KEY[key]): it for key, it in _FROZEN_BY_KEY.items()}
            self._replace_in_new_modules(self._modules, frozen)
        self._modules = set()

    def _restore_new_modules(self) -> None:
        """Give the real names to modules that were loaded meanwhile and bound the shown ones."""
        shown = {**self._shown.functions, "date": FakeDate, "datetime": FakeDatetime}
        self._replace_in_new_modules(self._modules_when_shown, {id(it): _REAL_BY_KEY[key] for key, it in shown.items()})

    def _replace_in_new_modules(self, known: set[str], values: dict[int, Any]) -> None:
        for name in sys.modules.keys() - known:
            module = sys.modules[name]
            if name.partition(".")[0] in _LEFT_ALONE or not hasattr(module, "__dict__"):
                continue
            namespace = vars(module)
            for attribute, value in list(namespace.items()):
                if id(value) in values:
                    namespace[attribute] = values[id(value)]
            for function in _functions(namespace, name):
                if function.__defaults__:
                    function.__defaults__ = tuple(values.get(id(d), d) for d in function.__defaults__)
                if function.__kwdefaults__:
                    function.__kwdefaults__ = {k: values.get(id(d), d) for k, d in function.__kwdefaults__.items()}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Real time for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()
