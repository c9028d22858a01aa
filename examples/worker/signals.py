"""What is done when Celery says that something happened."""

from celery.signals import task_failure

from .celery_tasks import add, clean_up


@task_failure.connect(sender=add)
def clean_up_after_failure(sender, task_id, **_):
    """Celery calls this in the process in which the task ran."""
    clean_up.delay(task_id)
