"""What is secret by its name is masked wherever the plugin shows it, and is there for the test."""

from __future__ import annotations

import pytest

from pytest_celery_faults.secrets import MASK, Secrets, Shown

TASKS = """
        import pytest
        from celery import Celery

        app = Celery("shop", broker="redis://nowhere.invalid/0", backend="redis://nowhere.invalid/0")

        @app.task(name="shop.login")
        def login(user, password, options=None):
            raise KeyError(user)

        @app.task(name="shop.bound", bind=True)
        def bound(self, api_key):
            raise KeyError(1)

        @pytest.fixture
        def celery_faults_app():
            return app
"""


@pytest.fixture
def run(shop):
    def run(tests, *options, ini=""):
        shop.ini(ini)
        shop.test(TASKS + tests)
        return shop.run(*options)

    return run


SHOWN = """
        def test_it(celery_faults, celery_dlq):
            login.delay("ann", "hunter2", options={"retries": 3, "Auth-Token": "hunter2"})
            login.delay(user="ann", password="hunter2")
            bound.delay("hunter2")
            login.apply_async(("ann", "hunter2"), argsrepr="(ann, ...)")
            celery_faults.worker.drain()
            assert celery_dlq[0].args == ["ann", "hunter2"]
            assert celery_dlq[1].kwargs == {"user": "ann", "password": "hunter2"}
            for one in [*celery_dlq, *celery_faults.sent]:
                print("SHOWN", repr(one))
            assert [letter.reason for letter in celery_dlq] == ["rejected"] * 4
"""


def test_letters_and_messages(run):
    result = run(SHOWN, "-vv")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    shown = [line.partition("SHOWN ")[2] for line in text.splitlines() if line.startswith("SHOWN ")]
    calls = [
        "shop.login('ann', ***, options={'retries': 3, 'Auth-Token': ***})",
        "shop.login(user='ann', password=***)",
        "shop.bound(***)",
        "shop.login(ann, ...)",
    ]
    assert [line.split(" ", 1)[1].rpartition(")")[0].partition(" from ")[0].partition(" to ")[0] for line in shown[4:]]
    for call, letter, sent in zip(calls, shown[:4], shown[4:], strict=True):
        assert f"<Letter {call} " in letter
        assert f"<SentMessage {call} " in sent
    # In the table of the comparison, too; nowhere but in the lines of the test itself.
    assert "['ann', ***]" in text
    assert all("hunter2" not in line for line in text.splitlines() if "delay(" not in line and "assert " not in line
               and "apply_async" not in line)  # fmt: skip


def test_callbacks(run):
    result = run("""
        @app.task(name="shop.note")
        def note(result, secret):
            pass

        @app.task(name="shop.fine")
        def fine():
            return "fine"

        def test_it(celery_faults):
            fine.apply_async(link=note.s(secret="hunter2"))
            celery_faults.worker.drain()
            assert "shop.note('fine', secret=***)" in repr(celery_faults.callbacks)
            assert celery_faults.callbacks[0].kwargs == {"secret": "hunter2"}
""")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("at", ["start", "publish"])
def test_what_a_fault_may_strike(run, at):
    fault = {"start": "OSError", "publish": "Drop()"}[at]
    result = run(f"""
        from pytest_celery_faults import Drop

        seen = []

        def test_it(celery_faults):
            celery_faults.inject({fault}, at={at!r}, when=lambda execution: seen.append(execution) or True)
            login.delay("ann", password="hunter2")
            celery_faults.worker.drain()
            [execution] = seen
            assert repr(execution) == "<Execution shop.login('ann', password=***) from 'celery'>"
            assert execution.kwargs == {{"password": "hunter2"}}
""")
    result.assert_outcomes(passed=1)


def test_the_names_are_the_users(run):
    result = run(
        """
        def test_it(celery_faults):
            login.delay("ann", "hunter2")
            assert "('ann', 'hunter2')" not in repr(celery_faults.sent)
            assert "shop.login(***, 'hunter2')" in repr(celery_faults.sent)
""",
        ini="celery_faults_secrets =\n    user*\n    pin\n",
    )
    result.assert_outcomes(passed=1)


def test_a_name_that_is_none_is_an_error(run):
    result = run("def test_it(): pass", ini="celery_faults_secrets =\n    pass word\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*celery_faults_secrets: 'pass word' is no name of an argument. Write one name on*"])


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("password", True), ("db_password", True), ("Password2", True), ("X-Api-Key", True), ("token", True),
        ("access_token", True), ("token_id", True), ("tokenizer", False), ("Authorization", True), ("user", False),
        ("Set-Cookie", True), ("cvv", True), ("pass_through", False), (3, False), (None, False),
    ],
)  # fmt: skip
def test_usual_names(name, secret):
    assert Secrets().has(name) is secret


def test_within_lists_and_mappings():
    value = {"users": [{"name": "ann", "password": "x"}, ("a", {"token": 1})], 3: "three"}
    masked = Secrets().masked(value)
    assert masked == {"users": [{"name": "ann", "password": MASK}, ("a", {"token": MASK})], 3: "three"}
    assert value["users"][0] == {"name": "ann", "password": "x"}
    endless = []
    endless.append(endless)
    assert "..." in repr(Secrets().masked(endless))


def test_no_globs_mask_nothing():
    assert not Secrets(()).has("password")


class Task:
    def run(self, password, *more, token=None):
        pass


@pytest.mark.parametrize(
    ("args", "kwargs", "headers", "words"),
    [
        (["x", 1], {"token": 2}, {}, ["***", "1", "token=***"]),
        # Celery's own words are of all values.
        (["x", 1], {"token": 2}, {"argsrepr": "('x', 1)", "kwargsrepr": "{'token': 2}"}, ["***", "1", "token=***"]),
        (["x", 1], {}, {"argsrepr": "['x', 1]"}, ["***", "1"]),
        # Also where they differ from what came back.
        (["x", [1]], {}, {"argsrepr": "('x', (1,))"}, ["***", "[1]"]),
        (
            [],
            {"token": "abc", "when": [1]},
            {"kwargsrepr": "{'token': 'abc', 'when': (1,)}"},
            ["token=***", "when=[1]"],
        ),
        (["x", object], {}, {"argsrepr": "('x', <thing at 0x7f00>)"}, ["***", "<class 'object'>"]),
        ([3], {}, {"argsrepr": "(<Unrepresentable <class 'x.Y'>0x7f00: KeyError()>,)"}, ["***"]),
        # The application's.
        (["x", 1], {"a": 5}, {"argsrepr": "(hidden)", "kwargsrepr": "{'a': '...'}"}, ["hidden", "'a': '...'"]),
        ([], {"a": 5}, {"argsrepr": "()", "kwargsrepr": 7}, ["a=5"]),
    ],
)
def test_words(args, kwargs, headers, words):
    assert Shown(Secrets(), lambda: {"task": Task()}).words("task", args, kwargs, headers) == words
    assert Shown(Secrets(()), dict).words("task", args, kwargs) == [
        *map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())
    ]  # fmt: skip
