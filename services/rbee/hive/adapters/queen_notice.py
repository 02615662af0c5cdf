"""Tells a queen by HTTP that a worker is up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rbee.core.client import ServiceClient, TransportFailure
from rbee.core.errors import RbeeError

TIMEOUT_S = 5.0


class HttpQueenNotice:
    """Posts to ``/v1/orchestrator/worker-ready``; a queen that does not take it is only logged.

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
        self._queen_url = queen_url
        self._key = key
        self._correlation_id = correlation_id
        self._log = log

    def __call__(self, notice: dict[str, Any]) -> None:
        try:
            client = ServiceClient(
                self._queen_url,
                api_key=self._key(),
                correlation_id=self._correlation_id,
                timeout_s=TIMEOUT_S,
            )
            try:
                client.post("/v1/orchestrator/worker-ready", notice)
            finally:
                client.close()
        except (TransportFailure, RbeeError, ValueError) as error:
            self._log.warning(
                "queen_not_notified",
                message=f"the queen did not take the notice: {error}",
                worker_id=notice["worker_id"],
            )
