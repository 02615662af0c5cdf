"""A Flask application with the rules every service keeps: keys, limits, correlation ids, logs, metrics."""

from __future__ import annotations

import contextvars
import json
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import flask
import prometheus_client

from rbee.core.errors import InvalidRequest, TooManyRequests
from rbee.core.logs import begin_request, escape_control, get_logger
from rbee.core.schemas import Body, validate
from rbee.web.auth import KeyRing
from rbee.web.errors import install_error_handlers

PUBLIC_PATHS = frozenset({"/health", "/v1/health", "/health/live", "/health/ready"})
MAX_JSON_DEPTH = 32
_LINGER_BYTES = 16 * 1024 * 1024
_LINGER_S = 2.0

_correlation: contextvars.ContextVar[str | None] = contextvars.ContextVar("correlation_id", default=None)

B = TypeVar("B", bound=Body)


def correlation_id() -> str | None:
    """The id of the request this greenlet works for."""
    return _correlation.get()


def create_service_app(
    component: str,
    keys: KeyRing,
    *,
    body_bytes: int,
    invalid_per_second: int,
    own_key_paths: frozenset[str] = frozenset(),
    on_error: Callable[[str], None] = lambda _code: None,
) -> flask.Flask:
    """An application without routes.

    Args:
        component: the name used in logs, e.g. ``rbee-hive``.
        keys: the fleet key (or a worker's own).
        own_key_paths: paths whose route checks another key itself.
        on_error: told the code of every error answer, for metrics.
    """
    app = flask.Flask(component, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.url_map.strict_slashes = False
    log = get_logger(component)
    flood = _InvalidRequests(invalid_per_second)

    @app.before_request
    def admit() -> None:
        request = flask.request
        flask.g.started = time.perf_counter()
        identity = _accepted_correlation_id(request.headers.get("X-Correlation-ID"))
        _correlation.set(identity)
        begin_request(correlation_id=identity)
        if flood.is_over(request.remote_addr):
            raise TooManyRequests()
        if request.path in own_key_paths:
            return
        header = request.headers.get("Authorization")
        try:
            keys.check(header, public=request.path in PUBLIC_PATHS)
        except Exception:
            log.warning(
                "authentication_failed",
                message="request refused",
                client=request.remote_addr,
                path=escape_control(request.path),
            )
            raise

    @app.after_request
    def conclude(answer: flask.Response) -> flask.Response:
        identity = _correlation.get()
        if identity:
            answer.headers["X-Correlation-ID"] = identity
        code = flask.g.pop("error_code", None)
        if code is not None:
            on_error(code)
        if answer.status_code in (400, 401, 413):
            flood.count(flask.request.remote_addr)
        if answer.status_code == 413:
            _linger(answer, flask.request.environ.get("gunicorn.socket"))
        _log_request(log, answer, code)
        return answer

    install_error_handlers(app, component, correlation_id)
    return app


def read_body(model: type[B]) -> B:
    """The request's JSON body, validated; an empty body counts as ``{}``.

    Raises:
        InvalidRequest and what ``rbee.core.schemas.validate`` raises.
        werkzeug's RequestEntityTooLarge, which the web edge turns into PayloadTooLarge.
    """
    raw = flask.request.get_data(cache=False)
    return validate(model, parse_json(raw) if raw else {})


def parse_json(raw: bytes) -> Any:
    """JSON in UTF-8 without NaN, nested at most 32 levels deep.

    Raises:
        InvalidRequest: it is not.
    """
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            [{"field": "body", "constraint": "json", "message": "the body is not valid JSON in UTF-8"}]
        ) from None
    if _is_deeper(body, MAX_JSON_DEPTH):
        raise InvalidRequest(
            [
                {
                    "field": "body",
                    "constraint": "depth",
                    "message": f"nested deeper than {MAX_JSON_DEPTH} levels",
                }
            ]
        )
    return body


def add_metrics_route(app: flask.Flask, registry: prometheus_client.CollectorRegistry) -> None:
    """Offer ``GET /metrics`` as Prometheus text."""

    def metrics() -> flask.Response:
        text = prometheus_client.generate_latest(registry)
        return flask.Response(text, content_type=prometheus_client.CONTENT_TYPE_LATEST)

    app.add_url_rule("/metrics", "metrics", metrics)


def query_flag(name: str, default: bool = False) -> bool:
    """A boolean of the query string.

    Raises:
        InvalidRequest: it is neither ``true`` nor ``false``.
    """
    text = flask.request.args.get(name)
    if text is None:
        return default
    if text not in ("true", "false"):
        raise InvalidRequest([{"field": name, "constraint": "boolean", "message": "must be true or false"}])
    return text == "true"


def query_int(name: str, default: int, low: int, high: int) -> int:
    """An integer of the query string within ``low`` and ``high``.

    Raises:
        InvalidRequest: it is not one.
    """
    text = flask.request.args.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise InvalidRequest(
            [{"field": name, "constraint": "range", "message": f"must be an integer from {low} to {high}"}]
        )
    return int(text)


def _accepted_correlation_id(header: str | None) -> str:
    if header is not None and len(header) == 36:
        try:
            if str(uuid.UUID(header)) == header.lower():
                return header
        except ValueError:
            pass
    return str(uuid.uuid4())


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            child
            for item in layer
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not layer:
            return False
    return True


def _log_request(log: Any, answer: flask.Response, code: str | None) -> None:
    request, started = flask.request, flask.g.started
    method, path, status = request.method, escape_control(request.path), answer.status_code
    identity = _correlation.get()

    def write() -> None:
        extra = {"error_code": code} if code else {}
        log.info(
            "http_request",
            message=f"{method} {path} {status}",
            correlation_id=identity,
            method=method,
            path=path,
            status=status,
            duration_ms=round((time.perf_counter() - started) * 1000, 1),
            **extra,
        )

    if answer.is_streamed:
        answer.call_on_close(write)
    else:
        write()


def _linger(answer: flask.Response, client: socket.socket | None) -> None:
    """Let a refused upload's client read the answer: closing with unread bytes would reset its connection."""
    if client is None:
        return

    def drain() -> None:
        try:
            client.shutdown(socket.SHUT_WR)
            client.settimeout(_LINGER_S)
            left = _LINGER_BYTES
            while left > 0 and (piece := client.recv(65536)):
                left -= len(piece)
        except OSError:
            return

    answer.call_on_close(drain)


class _InvalidRequests:
    """Counts invalid requests per address and second."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._second = 0
        self._counts: dict[str | None, int] = {}

    def _roll(self) -> None:
        now = int(time.monotonic())
        if now != self._second:
            self._second = now
            self._counts.clear()

    def count(self, address: str | None) -> None:
        self._roll()
        self._counts[address] = self._counts.get(address, 0) + 1

    def is_over(self, address: str | None) -> bool:
        self._roll()
        return self._counts.get(address, 0) > self._limit
