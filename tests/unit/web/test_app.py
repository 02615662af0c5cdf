"""The rules every service keeps, seen through a Flask test client."""

import json
import uuid
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient

from rbee.core.errors import AllSlotsBusy
from rbee.core.schemas import TaskRequest
from rbee.web.app import create_service_app, query_flag, query_int, read_body
from rbee.web.auth import KeyRing

KEY = "0123456789abcdef"


def make_client(key: str | None = None, invalid_per_second: int = 1000) -> FlaskClient:
    app = create_service_app("unit", KeyRing(key), body_bytes=4096, invalid_per_second=invalid_per_second)

    @app.get("/v1/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/secret")
    def secret() -> dict[str, Any]:
        return {"lines": query_int("lines", 100, 0, 10000), "follow": query_flag("follow")}

    @app.post("/v1/task")
    def task() -> flask.Response:
        return flask.jsonify(read_body(TaskRequest).model_dump())

    @app.get("/v1/busy")
    def busy() -> None:
        raise AllSlotsBusy(1, 1)

    @app.get("/v1/crash")
    def crash() -> None:
        raise RuntimeError("internal words that must not leak")

    return app.test_client()


def error_of(answer: Any) -> dict[str, Any]:
    body = answer.get_json()
    assert set(body) == {"error"}
    assert isinstance(body["error"]["details"], dict)
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "NOT_FOUND"),
        ("DELETE", "/v1/health", None, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/task", b"{not json", 400, "INVALID_REQUEST"),
        ("POST", "/v1/task", b"\xff\xfe", 400, "INVALID_REQUEST"),
        ("POST", "/v1/task", b'{"temperature": NaN}', 400, "INVALID_REQUEST"),
        ("POST", "/v1/task", b"[" * 4000, 400, "INVALID_REQUEST"),
        ("POST", "/v1/task", b"[1,2]", 400, "INVALID_REQUEST"),
        ("POST", "/v1/task", b"", 400, "INVALID_REQUEST"),
        ("POST", "/v1/task", b"x" * 5000, 413, "PAYLOAD_TOO_LARGE"),
        ("GET", "/v1/busy", None, 503, "ALL_SLOTS_BUSY"),
        ("GET", "/v1/crash", None, 500, "INTERNAL_ERROR"),
        ("GET", "/v1/secret?lines=-1", None, 400, "INVALID_REQUEST"),
        ("GET", "/v1/secret?follow=maybe", None, 400, "INVALID_REQUEST"),
    ],
)
def test_every_failure_is_an_envelope(
    method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    answer = make_client().open(path, method=method, data=body)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert b"internal words" not in answer.data
    assert b"Traceback" not in answer.data


def test_json_nested_32_levels_deep_is_read_and_33_is_refused() -> None:
    client = make_client()
    for levels, constraint in ((32, "extra_forbidden"), (33, "depth")):
        nested = json.loads("[" * (levels - 1) + "]" * (levels - 1))
        answer = client.post("/v1/task", json={"prompt": "p", "x": nested})
        assert {e["constraint"] for e in error_of(answer)["details"]["errors"]} == {constraint}


def test_the_correlation_id_is_echoed_when_well_formed_and_made_up_when_not() -> None:
    client = make_client()
    given = str(uuid.uuid4()).upper()
    echoed = client.get("/v1/health", headers={"X-Correlation-ID": given})
    assert echoed.headers["X-Correlation-ID"] == given
    for bad in ("x", "", "g" * 36, given + "0"):
        answer = client.get("/v1/health", headers={"X-Correlation-ID": bad})
        assert uuid.UUID(answer.headers["X-Correlation-ID"]).version == 4
    crash = client.get("/v1/crash", headers={"X-Correlation-ID": given})
    assert error_of(crash)["details"] == {"correlation_id": given}


def test_a_key_guards_every_path_but_health() -> None:
    client = make_client(KEY)
    assert client.get("/v1/health").status_code == 200
    refused = client.get("/v1/secret")
    assert (refused.status_code, error_of(refused)["code"]) == (401, "MISSING_API_KEY")
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    wrong = client.get("/v1/health", headers={"Authorization": "Bearer " + "x" * 16})
    assert (wrong.status_code, error_of(wrong)["code"]) == (401, "INVALID_API_KEY")
    unknown = client.get("/nowhere")
    assert unknown.status_code == 401
    assert client.get("/v1/secret", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_flood_of_invalid_requests_is_stopped_for_the_rest_of_the_second() -> None:
    client = make_client(invalid_per_second=5)
    codes = [client.post("/v1/task", data=b"{").status_code for _ in range(40)]
    assert codes[0] == 400
    assert 429 in codes
