"""Tasks that do not know their app."""

import time

from celery import Task, shared_task


class Greet(Task):
    name = "suite.greet"

    def run(self, who):
        return f"hello {who}"


@shared_task(name="suite.add")
def add(x, y):
    return x + y


@shared_task(name="suite.total")
def total(numbers):
    return sum(numbers)


@shared_task(name="suite.fail")
def fail(text):
    raise ValueError(text)


@shared_task(name="suite.nap")
def nap(seconds):
    time.sleep(seconds)
    return seconds


@shared_task(name="suite.flaky", bind=True, max_retries=3)
def flaky(self, failures):
    if self.request.retries < failures:
        raise self.retry(countdown=0.2, exc=OSError(f"failure {self.request.retries}"))
    return self.request.retries


@shared_task(name="suite.auto", autoretry_for=(OSError,), retry_backoff=1, retry_backoff_max=1, retry_jitter=False)
def auto(path):
    with open(path) as file:
        return file.read()


@shared_task(name="suite.progress", bind=True)
def progress(self):
    self.update_state(state="PROGRESS", meta={"done": 1})
    time.sleep(0.5)
    return "all"


@shared_task(name="suite.touch", ignore_result=True)
def touch(path):
    with open(path, "a") as file:
        file.write("touched\n")


@shared_task(name="suite.about", bind=True)
def about(self):
    request = self.request
    return {
        "name": self.name,
        "id": request.id,
        "retries": request.retries,
        "queue": request.delivery_info["routing_key"],
        "eager": request.is_eager,
        "app": self.app.main,
    }
