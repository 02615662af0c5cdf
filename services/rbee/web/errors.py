"""The web edge: every failure leaves a service as the same envelope, and no traceback with it."""

from __future__ import annotations

from typing import Any

import flask
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from rbee.core.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RbeeError,
)
from rbee.core.logs import get_logger


def install_error_handlers(app: flask.Flask, component: str, correlation_id: Any) -> None:
    """Answer every exception with its envelope and status; ``correlation_id()`` names the request."""
    log = get_logger(component)

    def of_ours(error: RbeeError) -> flask.Response:
        return error_response(error)

    def of_werkzeug(error: HTTPException) -> flask.Response:
        return error_response(_translate(error, app))

    def unexpected(error: Exception) -> flask.Response:
        log.error("internal_error", message=type(error).__name__, exc_info=error)
        return error_response(internal_error(correlation_id()))

    app.register_error_handler(RbeeError, of_ours)
    app.register_error_handler(HTTPException, of_werkzeug)
    app.register_error_handler(Exception, unexpected)


def internal_error(correlation_id: str) -> InternalError:
    """What a caller learns of a defect: the id under which it was logged, nothing else."""
    return InternalError(
        "Internal error; see the service's log under this correlation id",
        details={"correlation_id": correlation_id},
    )


def error_response(error: RbeeError) -> flask.Response:
    """The envelope as an HTTP answer."""
    answer = flask.jsonify(error.envelope())
    answer.status_code = error.http_status
    flask.g.error_code = error.code
    if error.http_status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, PayloadTooLarge):
        answer.headers["Connection"] = "close"
    return answer


def _translate(error: HTTPException, app: flask.Flask) -> RbeeError:
    if isinstance(error, RequestEntityTooLarge):
        return PayloadTooLarge(int(app.config["MAX_CONTENT_LENGTH"] or 0))
    if error.code == 404:
        return NotFound("No such path on this service")
    if error.code == 405:
        return MethodNotAllowed("This path does not accept that method")
    return InvalidRequest(
        [{"field": "request", "constraint": "http", "message": error.name}], message=error.name
    )
