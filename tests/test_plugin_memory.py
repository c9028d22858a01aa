"""The harness is up before everything else of a test, and nothing leads out of memory while it is."""

from __future__ import annotations

import pytest

# A plugin of the inner run: refuses each connection to the network, and says at the end which were tried.
GUARD = """
import sys
tried = []

def look(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        tried.append(args[1])
        raise ConnectionRefusedError("nothing leads out of memory")

sys.addaudithook(look)

def pytest_terminal_summary(terminalreporter):
    terminalreporter.line(f"connections tried: {tried}")
"""

HEAD = """
import kombu
import pytest
from celery import Celery, shared_task
from shop import URL, add, app, download, slow
from pytest_celery_faults import ForeignBrokerError

OTHER_URL = "redis://127.0.0.1:2/0"
"""


@pytest.fixture
def guarded(shop):
    shop.pytester.makepyfile(guard=GUARD)
    shop.ini("celery_faults_app = shop:app", "pythonpath = .")
    return shop


def run(guarded, source, *arguments, head=HEAD):
    """Run it; fail when anything tried to reach the network."""
    guarded.test(head + source)
    result = guarded.run("-p", "guard", *arguments, subprocess=True)
    result.stdout.fnmatch_lines(["connections tried: [[][]]"])
    return result


def test_the_guard_notices(guarded):
    guarded.test(
        HEAD + "def test_it():\n    with pytest.raises(Exception, match='nothing leads out of memory'):\n"
        "        app.connection().connect()\n"
    )
    result = guarded.run("-p", "guard", subprocess=True)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"connections tried: *'127.0.0.1', {guarded.port}*"])


ORDER = """
published = []

@pytest.fixture(autouse=True)
def aaa_publishes(request):
    '''The first by its name, autouse, and it asks for nothing of ours.'''
    published.append(add.delay(1, 2))
    yield
    published[-1].get()             # the harness is still up

@pytest.fixture(scope="module", autouse=True)
def of_the_module():
    published.append("module")

@pytest.fixture
def before():
    return add.delay(3, 4)

class TestIt:
    def setup_method(self):
        self.of_setup = add.delay(5, 6)

    def test_by_fixture(self, before, celery_faults):
        assert len(celery_faults.sent.of(add)) == 3
        assert [r.get() for r in (published[-1], before, self.of_setup)] == [3, 7, 11]
        assert published[0] == "module"

    def test_another_fixture_of_ours(self, before, retry_recorder):
        assert [r.get() for r in (published[-1], before, self.of_setup)] == [3, 7, 11]

    @pytest.mark.celery_faults(concurrency=2)
    def test_by_settings(self, before):
        assert [r.get() for r in (published[-1], before, self.of_setup)] == [3, 7, 11]

    @pytest.mark.inject(KeyError(), times=3)
    def test_by_inject(self, before):
        for result in (published[-1], before, self.of_setup):
            with pytest.raises(KeyError):
                result.get()
        published[-1].forget()
        published.append(add.delay(1, 2))

    def test_through_getfixturevalue(self, request, celery_faults):
        assert request.getfixturevalue("before").get() == 7

@pytest.mark.usefixtures("celery_faults")
@pytest.mark.parametrize("value", [1, 2])
def test_by_usefixtures(before, value):
    assert before.get() == 7
"""


def test_the_harness_is_up_before_every_other_fixture_of_the_test(guarded):
    result = run(guarded, ORDER, "--celery-faults")
    result.assert_outcomes(passed=7)


def test_a_fixture_chain_that_ends_in_ours_is_seen(guarded):
    run(
        guarded,
        """
@pytest.fixture
def mine(celery_faults): return celery_faults
@pytest.fixture(autouse=True)
def aaa(): add.delay(1, 2)
def test_it(mine): assert len(mine.sent) == 1
""",
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize("kind", ["broker", "read", "write", "backend"])
def test_the_environment_does_not_lead_out(guarded, monkeypatch, kind):
    """These variables beat the settings of the application."""
    name = {
        "broker": "CELERY_BROKER_URL", "read": "CELERY_BROKER_READ_URL",
        "write": "CELERY_BROKER_WRITE_URL", "backend": "CELERY_RESULT_BACKEND",
    }[kind]  # fmt: skip
    monkeypatch.setenv(name, "redis://127.0.0.1:3/0")
    run(
        guarded,
        """
def test_it(celery_faults):
    assert add.delay(1, 2).get() == 3
    assert app.control.inspect(timeout=1).ping()
    celery_faults.worker.crash()
    celery_faults.worker.start()
    assert add.delay(1, 2).get() == 3
""",
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "settings",
    [
        "broker_use_ssl = {'ssl_cert_reqs': 0}",
        "redis_backend_use_ssl = {'ssl_cert_reqs': 0}",
        "broker_transport_options = {'master_name': 'main', 'sentinel_kwargs': {}, 'visibility_timeout': 5}",
        "broker_transport_options = {'socket_timeout': 1, 'socket_keepalive': True, 'global_keyprefix': 'shop-'}",
        "result_backend_transport_options = {'master_name': 'main', 'global_keyprefix': 'shop-'}",
        "broker_url = 'rediss://user:secret@example.invalid:6380/2?ssl_cert_reqs=none'",
        "broker_url = 'amqps://user:secret@example.invalid//shop'",
        "broker_url = ['amqp://one.invalid//', 'amqp://two.invalid//']",
        "broker_url = 'sentinel://one.invalid:26379;sentinel://two.invalid:26379'",
        "broker_url = 'memory://'",
        "result_backend = 'db+postgresql://user:secret@example.invalid/shop'",
        "result_backend = 'rpc://'",
        "result_backend = None",
        "broker_connection_retry_on_startup = False",
        "broker_pool_limit = 0",
        "broker_read_url = 'redis://read.invalid/'",
        "broker_login_method = 'EXTERNAL'",
        "task_always_eager = True",
        "task_always_eager, app.conf.task_store_eager_result = True, True",
    ],
)
def test_no_setting_leads_out(guarded, settings):
    path = guarded.pytester.path / "shop.py"
    path.write_text(path.read_text() + f"\napp.conf.{settings}\n")
    run(
        guarded,
        """
BEFORE = {name: repr(app.conf[name]) for name in app.conf}
def test_it(celery_faults):
    result = add.delay(1, 2)
    assert result.get() == 3
    assert celery_faults.sent.of(add), "it went through the broker"
    assert len(celery_faults.retries.of(result).attempts) == 1, "the worker ran it"
    assert download.delay("x").get() == "done"
def test_after():
    assert {name: repr(app.conf[name]) for name in app.conf} == BEFORE
""",
    ).assert_outcomes(passed=2)


def test_eager_is_back_after_the_test(guarded):
    path = guarded.pytester.path / "shop.py"
    path.write_text(path.read_text() + "\napp.conf.task_always_eager = True\n")
    run(
        guarded,
        """
def test_in_memory(celery_faults):
    result = add.delay(1, 2)
    assert result.state == "PENDING"
    assert result.get() == 3
def test_eager():
    result = add.delay(1, 2)
    assert type(result).__name__ == "EagerResult" and result.get() == 3
""",
    ).assert_outcomes(passed=2)


def test_another_app_of_the_same_broker_joins(guarded):
    run(
        guarded,
        """
other = Celery("other", broker=URL, backend=URL, set_as_current=False)

@shared_task(name="shared.double")
def double(x): return 2 * x

def test_it(celery_faults):
    assert other.tasks["shop.add"].delay(1, 2).get() == 3
    assert other.send_task("shop.add", (3, 4)).get() == 7
    assert double.delay(4).get() == 8
    assert other.tasks["shared.double"].delay(5).get() == 10
    assert len(celery_faults.sent) == 4

def test_made_in_the_test(celery_faults):
    made = Celery("made", broker=URL, backend=URL, set_as_current=False)
    assert made.send_task("shop.add", (3, 4)).get() == 7

def test_the_url_is_compared_by_meaning(celery_faults):
    made = Celery("made", broker=URL.removesuffix("/0") + "//", backend=URL, set_as_current=False)
    assert made.send_task("shop.add", (3, 4)).get() == 7
""",
    ).assert_outcomes(passed=3)


def test_an_app_of_another_broker_is_refused_by_name(guarded):
    result = run(
        guarded,
        """
foreign = Celery("the foreign app", broker=OTHER_URL, backend=OTHER_URL, set_as_current=False)

@foreign.task
def far(): return "far"

def test_refused(celery_faults):
    with pytest.raises(ForeignBrokerError, match="the foreign app") as info:
        far.delay()
    assert "127.0.0.1:2" in str(info.value)
    assert "@pytest.mark.celery_faults(apps=[...])" in str(info.value)
    with pytest.raises(ForeignBrokerError, match="the foreign app"):
        far.AsyncResult("x").get()
    with pytest.raises(ForeignBrokerError, match="the foreign app"):
        foreign.control.ping(timeout=1)
    assert not celery_faults.sent

def test_uncaught(celery_faults):
    far.delay()

@app.task
def relays():
    far.delay()

def test_in_a_task(celery_faults):
    with pytest.raises(ForeignBrokerError, match="the foreign app"):
        relays.delay().get()

@pytest.mark.celery_faults(apps=[foreign])
def test_adopted(celery_faults):
    result = far.delay()
    assert len(celery_faults.sent.of(far)) == 1
    assert result.state == "PENDING"
    assert foreign.control.ping(timeout=1)

@pytest.mark.celery_faults(apps=foreign)
def test_adopted_alone():
    far.delay()
""",
    )
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*ForeignBrokerError: *the foreign app*"])
    result.stdout.no_fnmatch_line("*harness.py:*")


def test_an_adopted_apps_tasks_run_and_the_app_is_given_back(guarded):
    run(
        guarded,
        """
foreign = Celery("foreign", broker=OTHER_URL, backend=OTHER_URL, set_as_current=False)

@foreign.task(name="foreign.far")
def far(): return "far"

@pytest.mark.celery_faults(apps=[foreign])
def test_adopted(celery_faults):
    assert far.delay().get() == "far"

def test_after():
    assert foreign.conf.broker_url == OTHER_URL
    assert foreign._backend_cache is None and foreign._pool is None
    assert foreign.connection().get_transport_cls().__module__ == "kombu.transport.redis"
""",
    ).assert_outcomes(passed=2)


def test_a_connection_given_by_hand_stays_in_memory_or_is_refused(guarded):
    run(
        guarded,
        """
def test_same(celery_faults):
    with kombu.Connection(URL) as connection:
        assert add.apply_async((1, 2), connection=connection).get() == 3

def test_made_before_the_harness(request):
    connection = kombu.Connection(URL)
    request.getfixturevalue("celery_faults")
    assert add.apply_async((1, 2), connection=connection).get() == 3

def test_other(celery_faults):
    with pytest.raises(ForeignBrokerError, match="127.0.0.1:2/"):
        add.apply_async((1, 2), connection=kombu.Connection(OTHER_URL))
    with pytest.raises(ForeignBrokerError):
        kombu.Connection("amqp://example.invalid//").connect()
    assert not celery_faults.sent

def test_a_pool_of_before(celery_faults):
    with POOL.acquire(block=True) as connection:
        assert add.apply_async((1, 2), connection=connection).get() == 3
POOL = kombu.Connection(URL).Pool(2)
""",
    ).assert_outcomes(passed=4)


def test_a_tasks_own_backend_stays_in_memory(guarded):
    run(
        guarded,
        """
from celery.backends.redis import RedisBackend

@app.task(backend=RedisBackend(app=app, url=OTHER_URL))
def own(): return "own"

def test_it(celery_faults):
    assert own.delay().get() == "own"

def test_result_by_id(celery_faults):
    result = own.delay()
    celery_faults.worker.drain()
    assert own.AsyncResult(result.id).result == "own"
    assert app.AsyncResult(result.id).result == "own"

def test_after():
    assert type(own.backend) is RedisBackend
""",
    ).assert_outcomes(passed=3)


def test_a_result_that_outlives_its_test_stays_in_memory(guarded):
    run(
        guarded,
        """
import gc
KEPT = []
def test_first(celery_faults):
    KEPT.append(add.delay(1, 2))
    KEPT[0].get()
    KEPT.append(slow.delay(10))
def test_second(celery_faults):
    assert KEPT[0].get() == 3
    assert KEPT[0].state == "SUCCESS"
def test_third():
    assert KEPT[0].state == "SUCCESS"
    assert KEPT[1].state in ("PENDING", "STARTED")
    KEPT.clear()
    gc.collect()
""",
    ).assert_outcomes(passed=3)


def test_tasks_that_a_test_defines_are_known_at_once_and_gone_afterwards(guarded):
    run(
        guarded,
        """
def test_first(celery_faults):
    assert add.delay(1, 2).get() == 3           # the worker is up
    @app.task
    def late(): return "late"
    assert late.delay().get() == "late"
    assert late.name in app.tasks

def test_second(celery_faults):
    assert not [name for name in app.tasks if name.endswith(".late")]
    @app.task
    def late(): return "another"
    assert late.delay().get() == "another"
""",
    ).assert_outcomes(passed=2)


def test_queues_that_the_app_or_its_tasks_name_are_consumed_but_not_the_dlq(guarded):
    run(
        guarded,
        """
@app.task(queue="reports")
def report(): return "reported"

@app.task(queue="dlq")
def bury(): raise NotImplementedError("nobody consumes the DLQ")

def test_by_a_task(celery_faults):
    assert report.delay().get() == "reported"
    bury.delay()
    celery_faults.worker.drain()
    assert celery_faults.broker.queues["dlq"] == 1

@pytest.mark.celery_faults(conf={"task_routes": {"shop.add": {"queue": "sums"}, "shop.slow": "naps"}})
def test_by_a_route():
    assert add.delay(1, 2).get() == 3
    assert slow.delay(4).get() == 4

@pytest.mark.celery_faults(conf={"task_queues": [kombu.Queue("celery"), kombu.Queue("declared")]})
def test_declared():
    assert add.apply_async((1, 2), queue="declared").get() == 3

@pytest.mark.celery_faults(dlq=None)
def test_without_a_dlq(celery_faults):
    @app.task(queue="dlq")
    def lives(): return 1
    assert lives.delay().get() == 1
""",
        # Celery 5.7 deprecates the option `queue` of a task, and everybody has it.
        "-W",
        "ignore::celery.exceptions.CDeprecationWarning",
    ).assert_outcomes(passed=4)
