"""Which application is under test, and what a wrong path to it says."""

from __future__ import annotations

import pytest

WHICH = """
def test_which(celery_faults, celery_faults_app):
    print("app:", celery_faults.app.main)
    assert celery_faults_app is celery_faults.app
"""

PACKAGE = {
    "shop_pkg/__init__": "",
    "shop_pkg/celery": "from celery import Celery\nmine = Celery('in package', broker='redis://')\n",
    "plain": (
        "from celery import Celery\nvalue = 3\napp = Celery('plain', broker='redis://')\nother = Celery('other')\n"
    ),
}


@pytest.fixture
def write(shop):
    """The application's modules, with no app named in the configuration."""
    shop.ini()
    (shop.pytester.path / "shop_pkg").mkdir()
    for name, source in PACKAGE.items():
        (shop.pytester.path / f"{name}.py").write_text(source)
    return shop


def which(result: pytest.RunResult) -> str:
    result.assert_outcomes(passed=1)
    (line,) = [line for line in result.outlines if "app: " in line]
    return line.rpartition("app: ")[2]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("plain:app", "plain"),
        ("plain:other", "other"),
        ("plain.other", "other"),
        ("plain", "plain"),
        ("shop_pkg.celery:mine", "in package"),
        ("shop_pkg.celery", "in package"),
        ("shop_pkg", "in package"),
    ],
)
def test_a_path_is_read_as_celery_dash_a_reads_it(write, path, name):
    write.test(WHICH)
    assert which(write.run("-s", f"--celery-faults-app={path}", subprocess=True)) == name
    write.ini(f"celery_faults_app = {path}")
    assert which(write.run("-s", subprocess=True)) == name


def test_the_first_that_exists_wins(write):
    """An overriding fixture, the flag, the ini key, a fixture `celery_app`, the current app: in this order."""
    write.test(WHICH + "import shop\n")
    assert which(write.run("-s")) == "shop", "the current app"

    celery_app = "import pytest\n@pytest.fixture\ndef celery_app():\n    from plain import app\n    return app\n"
    write.pytester.makeconftest(celery_app)
    assert which(write.run("-s")) == "plain", "the fixture celery_app"

    write.ini("celery_faults_app = plain:other")
    assert which(write.run("-s")) == "other", "the ini key"

    assert which(write.run("-s", "--celery-faults-app=shop_pkg")) == "in package", "the flag"

    write.pytester.makeconftest(celery_app.replace("celery_app", "celery_faults_app"))
    assert which(write.run("-s", "--celery-faults-app=shop_pkg")) == "plain", "the overriding fixture"


def test_the_overriding_fixture_may_return_celerys_proxy(write):
    write.pytester.makeconftest(
        "import pytest\n@pytest.fixture\ndef celery_faults_app():\n"
        "    import shop\n    from celery import current_app\n    return current_app\n"
    )
    write.test("def test_which(celery_faults):\n    print('app:', celery_faults.app.main)\n")
    assert which(write.run("-s")) == "shop"


def test_an_app_fixture_of_another_scope_will_do(write):
    write.pytester.makeconftest(
        "import pytest\n@pytest.fixture(scope='session')\n"
        "def celery_faults_app():\n    from plain import app\n    return app\n"
    )
    write.test(WHICH)
    assert which(write.run("-s")) == "plain"


@pytest.mark.parametrize("subprocess", [False, True], ids=["inprocess", "subprocess"])
def test_no_app_is_an_error_that_shows_both_ways(write, subprocess):
    write.test("def test_which(celery_faults): raise NotImplementedError('not reached')\n")
    result = write.run(subprocess=subprocess)
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["no Celery application to test.*", '*celery_faults_app = "package.module:app"', "*def celery_faults_app():"]
    )
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")


def test_a_current_app_without_tasks_is_none_of_the_users(write):
    write.test("import celery\ncelery.Celery('empty')\ndef test_which(celery_faults): pass\n")
    result = write.run(subprocess=True)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["no Celery application to test.*"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("plian:app", "*there is no module 'plian'*did you mean 'plain'?*"),
        ("shop_pkg.clery:mine", "*there is no module 'shop_pkg.clery'*"),
        ("plain:oter", "*plain has no Celery app 'oter', did you mean 'other'? Apps there: app, other*"),
        ("plain.oter", "*plain has no Celery app 'oter', did you mean 'other'? Apps there: app, other*"),
        ("shop_pkg.celery:mien", "*shop_pkg.celery has no Celery app 'mien', did you mean 'mine'?*"),
        ("plain:value", "*plain:value*that is 3, not a Celery application*"),
    ],
)
@pytest.mark.parametrize("twin", ["flag", "ini"])
def test_a_wrong_path_says_what_is_wrong_and_the_nearest_right_one(write, path, words, twin):
    write.test("import plain\ndef test_which(celery_faults): raise NotImplementedError('not reached')\n")
    if twin == "ini":
        write.ini(f"celery_faults_app = {path}")
    result = write.run(*([f"--celery-faults-app={path}"] if twin == "flag" else []), subprocess=True)
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([words])
    result.stdout.no_fnmatch_line("*During handling of the above exception*")
    result.stdout.fnmatch_lines([f"*{ {'flag': '--celery-faults-app', 'ini': 'celery_faults_app'}[twin] }*{path}*"])
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import a_dependency_that_is_missing", "*a_dependency_that_is_missing*"),
        ("import os\nos.no_such_thing", "*has no attribute 'no_such_thing'*"),
        ("raise RuntimeError('settings are missing')", "*settings are missing*"),
        ("from os import no_such_name", "*cannot import name 'no_such_name'*"),
        ("def broken(:", "*SyntaxError*"),
    ],
)
def test_an_app_module_that_fails_to_import_shows_its_own_error(write, source, words):
    (write.pytester.path / "broken.py").write_text(source + "\n")
    write.test("def test_which(celery_faults): raise NotImplementedError('not reached')\n")
    result = write.run("--celery-faults-app=broken:app", subprocess=True)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])
    result.stdout.no_fnmatch_line("*no module 'broken*")


@pytest.mark.parametrize("value", ["None", "'shop:app'", "object"])
def test_an_overriding_fixture_that_returns_no_app_is_an_error(write, value):
    write.pytester.makeconftest(f"import pytest\n@pytest.fixture\ndef celery_faults_app():\n    return {value}\n")
    write.test("def test_which(celery_faults): raise NotImplementedError('not reached')\n")
    result = write.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the fixture celery_faults_app returned *, not a Celery application"])
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")


@pytest.mark.parametrize(
    "fault",
    [
        "celery_faults.inject(IOError, task='shop.downlod')",
        "celery_faults.inject(Sleep(beyond='time_limit'), task='shop.add')",
    ],
)
def test_a_task_name_that_no_app_knows_is_an_error_at_the_call(shop, fault):
    shop.test(f"from pytest_celery_faults import Sleep\ndef test_it(celery_faults):\n    {fault}\n")
    result = shop.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*FaultValueError: inject(*"])
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")
