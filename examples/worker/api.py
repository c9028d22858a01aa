"""What is asked for over HTTP, as an ASGI application: each answer is what a task comes to.

Start it by `uvicorn worker.api:api`, for one.
"""

import asyncio
import json
from http import HTTPStatus

from celery import exceptions

from .celery_tasks import import_rates
from .client import ServiceDownError, TooManyRequestsError

#: So many seconds a caller waits. A busy service is asked again within them, one that is down is not.
PATIENCE = 5 * 60


async def rates_of(day):
    """The answer to somebody who asks for the rates of a day: status and content."""
    result = import_rates.delay(day)
    try:
        # `get()` blocks: in a thread, so that the event loop can serve the others meanwhile.
        rates = await asyncio.to_thread(result.get, timeout=PATIENCE)
    except exceptions.TimeoutError:
        # The task goes on.
        return HTTPStatus.GATEWAY_TIMEOUT, {"error": "not there yet", "task": result.id}
    except (ServiceDownError, TooManyRequestsError):
        return HTTPStatus.BAD_GATEWAY, {"error": "the rates cannot be had"}
    except LookupError:
        return HTTPStatus.NOT_FOUND, {"error": f"no rates for {day}"}
    return HTTPStatus.OK, rates


async def api(scope, receive, send):
    """Answers ``GET /rates/2024-05-31``."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    _, folder, day = scope["path"].rpartition("/rates/")
    status, content = await rates_of(day) if folder else (HTTPStatus.NOT_FOUND, {"error": "no such page"})
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
