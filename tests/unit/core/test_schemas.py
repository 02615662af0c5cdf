"""Request bodies: limits, strict types, all violations at once, nothing secret echoed."""

from typing import Any

import pytest

from rbee.core.errors import InvalidBackend, InvalidModelRef, InvalidRequest
from rbee.core.schemas import InferenceRequest, NodeAddRequest, TaskRequest, validate

REF = "hf:ORG/REPO"


def test_a_task_has_the_documented_defaults() -> None:
    task = validate(TaskRequest, {"prompt": "hi"})
    assert task.model_dump() == {
        "prompt": "hi",
        "system": None,
        "raw": False,
        "max_tokens": 100,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": None,
        "stop": [],
        "node": None,
        "model": None,
        "backend": None,
        "device": None,
        "timeout_seconds": 300,
        "busy_retries": 3,
        "ignore_cordon": False,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", "x" * 32769),
        ("prompt", "a\x00b"),
        ("prompt", "\ud800"),
        ("prompt", 7),
        ("system", ""),
        ("max_tokens", 0),
        ("max_tokens", 2049),
        ("max_tokens", "10"),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 1001),
        ("min_p", 0.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 2.1),
        ("seed", -1),
        ("seed", 4294967296),
        ("stop", ["a"] * 5),
        ("stop", [""]),
        ("stop", ["x" * 101]),
        ("device", -1),
        ("timeout_seconds", 0),
        ("timeout_seconds", 3601),
        ("busy_retries", 11),
        ("node", "Bad_Name"),
        ("node", "-a"),
        ("surprise", 1),
    ],
)
def test_a_value_out_of_its_limits_is_refused_by_field(field: str, value: Any) -> None:
    body = {"prompt": "hi", "backend": "cpu", field: value}
    with pytest.raises(InvalidRequest) as caught:
        validate(TaskRequest, body)
    assert [e["field"].split(".")[0] for e in caught.value.details["errors"]] == [field]


def test_all_violations_are_reported_together_and_the_prompt_is_never_echoed() -> None:
    body = {"prompt": "secret prompt\x00", "max_tokens": 0, "temperature": 9, "surprise": 1}
    with pytest.raises(InvalidRequest) as caught:
        validate(TaskRequest, body)
    listed = caught.value.details["errors"]
    assert {e["field"] for e in listed} == {"prompt", "max_tokens", "temperature", "surprise"}
    assert all({"field", "constraint", "message"} <= set(e) for e in listed)
    assert "secret" not in str(caught.value.envelope())


def test_the_value_of_an_unknown_field_is_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(TaskRequest, {"prompt": "hi", "promt": "secret"})
    assert [e["field"] for e in caught.value.details["errors"]] == ["promt"]
    assert "secret" not in str(caught.value.envelope())


def test_a_lone_bad_reference_or_backend_has_a_code_of_its_own() -> None:
    with pytest.raises(InvalidModelRef):
        validate(TaskRequest, {"prompt": "hi", "model": "nonsense"})
    with pytest.raises(InvalidBackend):
        validate(TaskRequest, {"prompt": "hi", "backend": "tpu"})


def test_raw_excludes_system_and_device_needs_backend() -> None:
    with pytest.raises(InvalidRequest):
        validate(TaskRequest, {"prompt": "hi", "system": "s", "raw": True})
    with pytest.raises(InvalidRequest):
        validate(TaskRequest, {"prompt": "hi", "device": 0})


def test_job_id_is_read_as_request_id_and_max_tokens_is_required_by_the_worker() -> None:
    request = validate(InferenceRequest, {"prompt": "hi", "max_tokens": 5, "job_id": "abc-1"})
    assert request.request_id == "abc-1"
    assert request.temperature == 1.0
    with pytest.raises(InvalidRequest):
        validate(InferenceRequest, {"prompt": "hi"})
    with pytest.raises(InvalidRequest):
        validate(InferenceRequest, {"prompt": "hi", "max_tokens": 5, "stream": False})


def test_a_task_becomes_an_inference_body_that_the_worker_accepts() -> None:
    task = validate(TaskRequest, {"prompt": "hi", "model": REF, "backend": "cpu", "seed": 7, "stop": ["x"]})
    request = validate(InferenceRequest, task.inference_body("id-1"))
    assert (request.request_id, request.seed, request.stop, request.temperature) == ("id-1", 7, ["x"], 0.7)


NODE = {"node_name": "mac", "ssh_host": "mac.home.arpa", "ssh_user": "u", "install_path": "/home/u/rbee"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ssh_host", "-oProxyCommand=x"),
        ("ssh_host", "a b"),
        ("ssh_user", "-l"),
        ("ssh_key_path", "/a/../b"),
        ("ssh_key_path", "relative"),
        ("git_repo_url", "http://x/y"),
        ("git_repo_url", "https://x/y z"),
        ("git_branch", "-x"),
        ("git_branch", "a/../b"),
        ("hive_port", 80),
        ("backends", ["tpu"]),
    ],
)
def test_node_fields_that_could_reach_a_shell_are_refused(field: str, value: Any) -> None:
    assert validate(NodeAddRequest, NODE).ssh_port == 22
    with pytest.raises((InvalidRequest, InvalidBackend)):
        validate(NodeAddRequest, {**NODE, field: value})
