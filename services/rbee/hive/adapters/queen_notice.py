"""Tells a queen by HTTP that a worker is up."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 5.0


class HttpQueenNotice:
    """Posts to ``/v1/orchestrator/worker-ready``; a queen that does not answer is only logged.

    Args:
        key: gives the fleet key in force.
        correlation_id: gives the id of the request behind a notice.
    """

    def __init__(
        self,
        queen_url: str,
        key: Callable[[], str | None],
        correlation_id: Callable[[], str | None],
        log: Any,
    ) -> None:
        parts = urlsplit(queen_url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._key = key
        self._correlation_id = correlation_id
        self._log = log

    def __call__(self, notice: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        if (key := self._key()) is not None:
            headers["Authorization"] = f"Bearer {key}"
        if (correlation := self._correlation_id()) is not None:
            headers["X-Correlation-ID"] = correlation
        try:
            connection.request("POST", "/v1/orchestrator/worker-ready", json.dumps(notice), headers)
            answer = connection.getresponse()
            outcome = f"status {answer.status}"
            if answer.status < 400:
                return
        except (OSError, http.client.HTTPException) as error:
            outcome = type(error).__name__
        finally:
            connection.close()
        self._log.warning(
            "queen_not_notified",
            message=f"the queen did not take the notice: {outcome}",
            worker_id=notice["worker_id"],
        )
