"""A client of the service that publishes the exchange rates of a day."""

import http.client
import json
import os


class ServiceDownError(Exception):
    """The service does not answer, or answers that it cannot: it will take a while."""


class TooManyRequestsError(Exception):
    """The service asks to be left alone for a moment."""


class Client:
    """Asks the service at ``host``, by default the one that ``WORKER_RATES_HOST`` names."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or os.environ.get("WORKER_RATES_HOST", "localhost:8080")

    def fetch_rates(self, day: str) -> dict[str, float]:
        """The rates of a day such as ``"2024-05-31"``, by currency.

        Raises:
            ServiceDownError, TooManyRequestsError: ask again later.
            LookupError: there are none for that day, and never will be.
        """
        try:
            status, body = self.get(f"/rates/{day}")
        except (OSError, http.client.HTTPException) as exc:
            raise ServiceDownError(str(exc)) from exc
        if status == http.HTTPStatus.TOO_MANY_REQUESTS:
            raise TooManyRequestsError(day)
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ServiceDownError(f"status {status}")
        if status != http.HTTPStatus.OK:
            raise LookupError(f"no rates for {day}: status {status}")
        return json.loads(body)

    def get(self, path: str) -> tuple[int, bytes]:
        """The HTTP exchange: the status and the body of the answer."""
        connection = http.client.HTTPConnection(self.host, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
