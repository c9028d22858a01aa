"""A client of the service that publishes the exchange rates of a day."""

import http.client
import json
import os


class ServiceDownError(Exception):
    """The service does not answer, or answers that it cannot: it will take a while."""


class TooManyRequestsError(Exception):
    """The service asks to be left alone for a moment."""


def fetch_rates(day: str) -> dict[str, float]:
    """The rates of a day such as ``"2024-05-31"``, by currency.

    Raises:
        ServiceDownError, TooManyRequestsError: ask again later.
        LookupError: there are none for that day, and never will be.
    """
    host = os.environ.get("WORKER_RATES_HOST", "localhost:8080")
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request("GET", f"/rates/{day}")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as exc:
        raise ServiceDownError(str(exc)) from exc
    finally:
        connection.close()
    if response.status == http.HTTPStatus.TOO_MANY_REQUESTS:
        raise TooManyRequestsError(day)
    if response.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ServiceDownError(f"status {response.status}")
    if response.status != http.HTTPStatus.OK:
        raise LookupError(f"no rates for {day}: status {response.status}")
    return json.loads(body)
