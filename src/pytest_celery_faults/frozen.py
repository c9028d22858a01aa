"""Shows the clock to everybody else: freezegun's date classes, and the time functions wherever they are bound.

freezegun's own ``freeze_time`` does not fit here: it scans every loaded module at each start and stop, its ignore
list works by prefix and by stack frames, its ``now()`` is not local time, and it knows nothing of ``sleep`` or of
default arguments. So its classes are shown by this module, which remembers
each place where a time function is bound and looks only into modules it has not seen.

Virtual time is what the test's thread sees, and the simulation's where that is another one. All other threads, and the
modules in `_REAL_TIME`, see real time.
"""

from __future__ import annotations

import copyreg
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

from .errors import hide_ours
from .simulation import Simulation

__tracebackhide__ = hide_ours

_real_date = _datetime.date
_real_datetime = _datetime.datetime
_EPOCH = _real_datetime(1970, 1, 1)

_FUNCTIONS = (
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
    "localtime", "gmtime", "asctime", "ctime", "strftime", "sleep",
)  # fmt: skip
_REAL = {name: getattr(_time, name) for name in _FUNCTIONS}

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

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
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
            return _real_datetime.now(_datetime.timezone.utc).replace(tzinfo=None)
        return _EPOCH + _datetime.timedelta(microseconds=self.clock.now_us)

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


def _local(naive_utc: _datetime.datetime) -> _datetime.datetime:
    """The local time of the process's time zone at that instant, summer time included."""
    whole = naive_utc.replace(microsecond=0)
    seconds = (whole - _EPOCH) // _datetime.timedelta(seconds=1)
    return _real_datetime.fromtimestamp(seconds).replace(microsecond=naive_utc.microsecond)


def _now(cls: type[FakeDatetime], tz: _datetime.tzinfo | None = None) -> FakeDatetime:
    current = _freezegun.get_current_time()
    if tz is None:
        return _fake(_local(current))
    return _fake(tz.fromutc(current.replace(tzinfo=tz)))


def _fromtimestamp(cls: type[FakeDatetime], t: float, tz: _datetime.tzinfo | None = None) -> FakeDatetime:
    return _fake(_real_datetime.fromtimestamp(t, tz))


def _today(cls: type[FakeDate]) -> FakeDate:
    local = _local(_freezegun.get_current_time())
    return FakeDate(local.year, local.month, local.day)


#: freezegun shows naive local time as UTC, and gives aware times an offset too; these are right in any zone.
_CORRECTED: tuple[tuple[type, str, Any], ...] = (
    (FakeDatetime, "now", classmethod(_now)),
    (FakeDatetime, "fromtimestamp", classmethod(_fromtimestamp)),
    (FakeDatetime, "timestamp", _real_datetime.timestamp),
    (FakeDatetime, "astimezone", lambda self, tz=None: _fake(_real_datetime.astimezone(self, tz))),
    (FakeDate, "today", classmethod(_today)),
)

# What a place is bound to: the name of a time function, or one of the two date classes.
_REAL_BY_KEY = {**_REAL, "date": _real_date, "datetime": _real_datetime, "give_way": _time.sleep}
_KEYS: dict[int, str] = {id(function): name for name, function in _REAL.items()}
_KEYS[id(_real_date)] = "date"
_KEYS[id(_real_datetime)] = "datetime"


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

    __slots__ = ("defaults", "module_names", "names", "namespace")

    def __init__(self, module: types.ModuleType) -> None:
        self.namespace = namespace = vars(module)
        self.names: list[tuple[str, str]] = []
        self.module_names: list[str] = []
        self.defaults: list[types.FunctionType] = []
        keeps_real_time = module.__name__.partition(".")[0] in _REAL_TIME
        knows_time = False
        for name, value in list(namespace.items()):
            key = _KEYS.get(id(value))
            if key is not None:
                knows_time = True
                if not keeps_real_time:
                    gives_way = key == "sleep" and module.__name__ == _GIVES_WAY
                    self.names.append((name, "give_way" if gives_way else key))
            elif value is _time:
                knows_time = True
                if keeps_real_time and not module.__name__.startswith("pytest_celery_faults"):
                    self.module_names.append(name)
            elif value is _datetime:
                knows_time = True
        if knows_time and not keeps_real_time:
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


def _scan() -> None:
    """Look into modules that are new, or were loaded again, since the last time."""
    modules = sys.modules
    if len(modules) == len(_scanned) and all(_scanned.get(name, _scanned) is modules[name] for name in modules):
        return
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


class Freeze:
    """Shows the clock of a simulation, from ``start()`` to ``stop()``."""

    def __init__(self, simulation: Simulation) -> None:
        self._shown = _Shown(simulation)
        self._undo: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._before: set[str] = set()
        self.active: bool = False
        self._over = False

    def start(self) -> None:
        if self.active or self._over:
            return
        self.active = True
        _scan()
        self._before = set(sys.modules)
        shown = self._shown
        fakes: dict[str, Any] = dict(shown.functions)
        if shown.clock.virtual:
            fakes["date"], fakes["datetime"] = FakeDate, FakeDatetime
            _freezegun.freeze_factories.append(cast(Any, shown))
            _freezegun.tz_offsets.append(_datetime.timedelta(0))
            _freezegun.ignore_lists.append(())
            _freezegun.tick_flags.append(False)
            copyreg.dispatch_table[_real_datetime] = cast(Any, _freezegun.pickle_fake_datetime)
            copyreg.dispatch_table[_real_date] = cast(Any, _freezegun.pickle_fake_date)
            for owner, name, correct in _CORRECTED:
                self._set(owner, name, correct, vars(owner)[name])
            self._set(_datetime, "datetime", FakeDatetime, _real_datetime)
            self._set(_datetime, "date", FakeDate, _real_date)
        else:
            fakes = {name: fakes[name] for name in ("sleep", "give_way")}
        for name, fake in fakes.items():
            if name in _REAL:
                self._set(_time, name, fake, _REAL[name])
        for places in _places.values():
            self._show_in(places, fakes)

    def _show_in(self, places: _Places, fakes: dict[str, Any]) -> None:
        namespace = places.namespace
        for name, key in places.names:
            if key in fakes and namespace.get(name) is _REAL_BY_KEY[key]:
                self._undo.append((namespace.__setitem__, (name, namespace[name])))
                namespace[name] = fakes[key]
        for name in places.module_names:
            if namespace.get(name) is _time:
                self._undo.append((namespace.__setitem__, (name, _time)))
                namespace[name] = _real_time_module
        for function in places.defaults:
            positional, keyword = function.__defaults__, function.__kwdefaults__
            if positional is not None:
                self._undo.append((setattr, (function, "__defaults__", positional)))
                function.__defaults__ = tuple(fakes.get(_KEYS.get(id(d), ""), d) for d in positional)
            if keyword is not None:
                self._undo.append((setattr, (function, "__kwdefaults__", keyword)))
                function.__kwdefaults__ = {k: fakes.get(_KEYS.get(id(d), ""), d) for k, d in keyword.items()}

    def _set(self, owner: Any, name: str, value: Any, original: Any) -> None:
        self._undo.append((setattr, (owner, name, original)))
        setattr(owner, name, value)

    def stop(self) -> None:
        if not self.active:
            return
        self.active = False
        while self._undo:
            restore, args = self._undo.pop()
            restore(*args)
        if self._shown.clock.virtual:
            position = _freezegun.freeze_factories.index(cast(Any, self._shown))
            for stack in (
                _freezegun.freeze_factories, _freezegun.tz_offsets, _freezegun.ignore_lists, _freezegun.tick_flags
            ):  # fmt: skip
                cast("list[Any]", stack).pop(position)
            if not _freezegun.freeze_factories:
                copyreg.dispatch_table.pop(_real_datetime, None)
                copyreg.dispatch_table.pop(_real_date, None)
        self._restore_new_modules()

    def finish(self) -> None:
        """Stop for good: the end of a block in real time does not start it again."""
        self._over = True
        self.stop()

    def _restore_new_modules(self) -> None:
        """Give the real names to modules that were loaded meanwhile and bound the shown ones."""
        real: dict[int, Any] = {id(fake): _REAL_BY_KEY[name] for name, fake in self._shown.functions.items()}
        real[id(FakeDatetime)] = _real_datetime
        real[id(FakeDate)] = _real_date
        for name in sys.modules.keys() - self._before:
            module = sys.modules[name]
            if name.partition(".")[0] == "freezegun" or not hasattr(module, "__dict__"):
                continue
            namespace = vars(module)
            for attribute, value in list(namespace.items()):
                if id(value) in real:
                    namespace[attribute] = real[id(value)]
            for function in _functions(namespace, name):
                if function.__defaults__:
                    function.__defaults__ = tuple(real.get(id(d), d) for d in function.__defaults__)
                if function.__kwdefaults__:
                    function.__kwdefaults__ = {k: real.get(id(d), d) for k, d in function.__kwdefaults__.items()}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Real time for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()
