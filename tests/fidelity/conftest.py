"""The same scenarios on the harness and on a real Redis server with a real worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE_WRITER = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    # pytest sees it when this folder is named on the command line.
    parser.addoption("--fidelity-page", metavar="path", help="write down how the two sides compare")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "fidelity: runs a scenario on a real redis-server and a real worker too; takes seconds"
    )
    path = config.getoption("--fidelity-page", None)
    if path:
        from fidelity_page import PageWriter

        writer = config.stash[PAGE_WRITER] = PageWriter(Path(path))
        config.pluginmanager.register(writer)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # The run that writes the page does it at its end.
    return True if collection_path.name == "test_fidelity_page.py" and PAGE_WRITER in config.stash else None


@pytest.fixture(scope="session")
def real_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Real Redis servers for broker and backend; workers are started as scenarios need them."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: nothing real to compare with")
    from fidelity_drivers import RealSide
    from scenario_app import app

    side = RealSide(program, tmp_path_factory.mktemp("fidelity"))
    # The app that sends the tasks of the real side; the harness adopts the same one, these servers' URLs and all.
    app.conf.update(broker_url=side.broker.url, result_backend=side.backend.url)
    try:
        yield side
    finally:
        app.close()
        side.stop()


@pytest.fixture
def page_writer(request: pytest.FixtureRequest, real_side: Any) -> Any:
    writer = request.config.stash.get(PAGE_WRITER, None)
    if writer is not None:
        writer.redis_server = real_side.broker.version
    return writer


@pytest.fixture(scope="module")
def real_run(request: pytest.FixtureRequest, real_side: Any) -> Any:
    """The scenario and what it left on the real side; over before the harness of the test is set up."""
    return request.param, real_side.run(request.param)


@pytest.fixture
def celery_faults_app() -> Any:
    from scenario_app import app

    return app
