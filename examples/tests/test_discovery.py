"""`app.autodiscover_tasks(["worker"], related_name="celery_tasks")`: which tasks the worker knows."""

import pytest
from celery import Celery

from pytest_celery_faults import AmbiguousHistoryError, FaultValueError
from worker.celery_tasks import add


def test_the_tasks_of_celery_tasks_py_are_found(celery_faults):
    found = {name for name in celery_faults.app.tasks if not name.startswith("celery.")}

    # The other one is named by `include`.
    assert celery_faults.app.loader.task_modules == {"worker.celery_tasks", "worker.signals"}
    assert found == {
        "worker.celery_tasks.add",
        "worker.celery_tasks.archive",
        "worker.celery_tasks.book",
        "worker.celery_tasks.clean_up",
        "worker.celery_tasks.close_books",
        "worker.celery_tasks.error_handler",
        "worker.celery_tasks.handle_error",
        "worker.celery_tasks.import_rates",
        "worker.celery_tasks.multiply",
        "worker.celery_tasks.pay_out",
        "worker.celery_tasks.share",
        "worker.celery_tasks.share_file",
        "worker.celery_tasks.tell_branches",
        "worker.celery_tasks.total",
        "worker.celery_tasks.total_of_branch",
        "worker.celery_tasks.total_of_year",
        "worker.celery_tasks.write_report",
        "worker.celery_tasks.write_report_or_nothing",
    }


@pytest.mark.parametrize(
    ("options", "modules"),
    [({}, set()), ({"related_name": "celery_tasks"}, {"worker.celery_tasks"})],
    ids=["by default only modules named tasks", "related_name says which"],
)
def test_the_name_of_the_module_must_be_given(options, modules):
    app = Celery("another", set_as_current=False)

    app.autodiscover_tasks(["worker"], force=True, **options)

    assert app.loader.task_modules == modules


def test_a_task_that_was_not_found_is_an_error_where_a_fault_names_it(celery_faults):
    with pytest.raises(FaultValueError, match=r"no such task, did you mean 'worker\.celery_tasks\.add'"):
        celery_faults.inject(ValueError, task="worker.celery_tasks.ad")


def test_a_task_that_was_not_found_is_an_error_where_an_assertion_names_it(retry_recorder):
    assert add.delay(2, 2).get() == 4

    with pytest.raises(AmbiguousHistoryError, match=r"did you mean 'worker\.celery_tasks\.add'"):
        retry_recorder.of("worker.celery_tasks.ad")
