"""Base classes: a retry schedule, or what is done about a failure, is written once and used by many tasks."""

from celery import Task
from celery.utils.log import get_task_logger

logger = get_task_logger(__name__)


class LoggedTask(Task):
    """Logs what a task failed with, and what it was given."""

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        logger.error("%s %s failed with %r, given %r %r\n%s", self.name, task_id, exc, args, kwargs, einfo)


class AutoRetryTask(Task):
    """Five retries after a ``TypeError``, 1, 2, 4, 8 and 16 seconds apart.

    For tasks that read what another program is still filling in: a field not there yet is ``None``.
    """

    autoretry_for = (TypeError,)
    max_retries = 5
    retry_backoff = True
    retry_backoff_max = 700
    retry_jitter = False


class PatientAutoRetryTask(AutoRetryTask):
    """More retries: the delay doubles until it meets the cap of 700 seconds, and stays there."""

    max_retries = 12


class JitteredAutoRetryTask(PatientAutoRetryTask):
    """Each delay is drawn from 0 up to what it would be without jitter, so that tasks do not come back all at once."""

    retry_jitter = True
