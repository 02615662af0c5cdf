"""The hive that started this worker, reached over HTTP at the URL it gave."""

from __future__ import annotations

from urllib.parse import urlsplit

from rbee.core.errors import RbeeError
from rbee.worker.ports import CallbackFailed


class HttpHive:
    """Implements ``rbee.worker.ports.Hive``; ``callback_url`` is that of ``POST /v1/workers/ready``."""

    def __init__(self, callback_url: str, api_key: str, *, timeout_s: float) -> None:
        self._callback_url = callback_url
        self._api_key = api_key
        self._timeout_s = timeout_s

    def report_ready(self, report: dict[str, object]) -> None:
        # Imported here: the model loads meanwhile, and nothing else in a worker needs an HTTP client.
        from rbee.core.client import ServiceClient, TransportFailure

        parts = urlsplit(self._callback_url)
        client = ServiceClient(
            f"{parts.scheme}://{parts.netloc}", api_key=self._api_key, timeout_s=self._timeout_s
        )
        try:
            client.post(parts.path, report)
        except TransportFailure as failure:
            raise CallbackFailed(f"{self._callback_url}: {failure.reason}") from None
        except RbeeError as error:
            raise CallbackFailed(f"{self._callback_url}: {error.code}: {error.message}") from None
        finally:
            client.close()
