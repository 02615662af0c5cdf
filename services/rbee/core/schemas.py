"""Bodies of requests as pydantic models, and the one way to validate them with every violation listed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rbee.core.errors import InvalidBackend, InvalidModelRef, InvalidRequest
from rbee.core.references import parse_model_ref

BACKENDS = ("cpu", "cuda", "metal")


def _plain_text(value: str) -> str:
    if "\x00" in value:
        raise PydanticCustomError("no_nul", "must not contain NUL characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError("utf8", "must be valid UTF-8") from None
    return value


def _model_ref(value: str) -> str:
    try:
        return str(parse_model_ref(value))
    except InvalidModelRef as error:
        raise PydanticCustomError(
            "model_ref", "{expected}", {"got": value[:512], "expected": error.details["expected"]}
        ) from None


def _backend(value: str) -> str:
    if value not in BACKENDS:
        raise PydanticCustomError("backend", "must be one of cpu, cuda, metal", {"got": value[:64]})
    return value


def _no_parent_segment(value: str) -> str:
    if ".." in value.split("/"):
        raise PydanticCustomError("no_parent", "must not contain a '..' segment")
    return value


Text = Annotated[str, Field(min_length=1, max_length=32768), AfterValidator(_plain_text)]
ModelReference = Annotated[str, AfterValidator(_model_ref)]
BackendName = Annotated[str, AfterValidator(_backend)]
DeviceIndex = Annotated[int, Field(ge=0)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")]
NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1024, le=65535)]
NodePath = Annotated[
    str, StringConstraints(pattern=r"^/[A-Za-z0-9._/-]{0,4095}$"), AfterValidator(_no_parent_segment)
]
StopText = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain_text)]


class Body(BaseModel):
    """Base of all request bodies: unknown fields are refused, types are not guessed."""

    # Built at the first use: a daemon starts a tenth of a second earlier, and needs few of them.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class Sampling(Body):
    """What to generate and how: the fields that queen and worker share."""

    prompt: Text
    system: Text | None = None
    raw: bool = False
    max_tokens: int = Field(ge=1, le=2048)
    temperature: float = Field(ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, le=1000)
    min_p: float = Field(default=0.0, ge=0.0, le=0.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=2.0)
    seed: int | None = Field(default=None, ge=0, le=4294967295)
    stop: list[StopText] = Field(default_factory=list, max_length=4)

    @model_validator(mode="after")
    def _system_needs_a_template(self) -> Sampling:
        if self.raw and self.system is not None:
            raise PydanticCustomError("system", "system cannot be used together with raw")
        return self


class TaskRequest(Sampling):
    """Body of ``POST /v2/tasks``; without a node the queen chooses one."""

    node: NodeName | None = None
    model: ModelReference | None = None
    max_tokens: int = Field(default=100, ge=1, le=2048)
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    backend: BackendName | None = None
    device: DeviceIndex | None = None
    timeout_seconds: int = Field(default=300, ge=1, le=3600)
    busy_retries: int = Field(default=3, ge=0, le=10)
    ignore_cordon: bool = False
    """Run on ``node`` although it takes no new tasks: how a node is tried before it is uncordoned."""

    @model_validator(mode="after")
    def _device_needs_a_backend(self) -> TaskRequest:
        if self.device is not None and self.backend is None:
            raise PydanticCustomError("device", "device needs backend")
        return self

    @model_validator(mode="after")
    def _an_exception_needs_a_node(self) -> TaskRequest:
        if self.ignore_cordon and self.node is None:
            raise PydanticCustomError("ignore_cordon", "ignore_cordon needs node")
        return self

    def inference_body(self, request_id: str) -> dict[str, Any]:
        """The body of ``POST /v1/inference`` that carries out this task."""
        fields = self.model_dump(
            exclude={"node", "model", "backend", "device", "busy_retries", "ignore_cordon"}, exclude_none=True
        )
        return {**fields, "request_id": request_id}


class InferenceRequest(Sampling):
    """Body of ``POST /v1/inference``; ``job_id`` is read as ``request_id``."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    request_id: Identifier | None = Field(default=None, alias="job_id")
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    stream: Literal[True] = True
    timeout_seconds: int = Field(default=300, ge=1, le=3600)


class SpawnRequest(Body):
    """Body of ``POST /v1/workers/spawn``; ``model`` is read as ``model_ref``."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    model_ref: ModelReference | None = Field(default=None, alias="model")
    backend: BackendName | None = None
    device: DeviceIndex | None = None
    worker_id: Identifier | None = None

    @model_validator(mode="after")
    def _names_a_model_or_a_worker(self) -> SpawnRequest:
        if self.model_ref is None and self.worker_id is None:
            raise PydanticCustomError(
                "model_ref", "{expected}", {"got": "", "expected": "model_ref is required"}
            )
        if self.device is not None and self.backend is None:
            raise PydanticCustomError("device", "device needs backend")
        return self


class WorkerReadyCallback(Body):
    """Body of ``POST /v1/workers/ready`` on a hive."""

    worker_id: Identifier
    url: Annotated[str, Field(max_length=512)]
    model_ref: Annotated[str, Field(min_length=1, max_length=512)]
    backend: BackendName
    device: DeviceIndex
    state: str | None = None
    vram_bytes: int | None = Field(default=None, ge=0)
    pid: int | None = Field(default=None, ge=1)


class WorkerReadyNotice(Body):
    """Body of ``POST /v1/orchestrator/worker-ready`` on a queen."""

    worker_id: Identifier
    url: Annotated[str, Field(max_length=512)]
    model_ref: Annotated[str, Field(min_length=1, max_length=512)]
    backend: BackendName
    device: DeviceIndex


class ModelBody(Body):
    """A body that names one model on this hive."""

    model_ref: ModelReference


class NodeModelBody(Body):
    """A body that names a model on a node of the fleet."""

    node: NodeName = "localhost"
    model: ModelReference


class PullRequest(Body):
    """Body of ``POST /v2/models/pull``."""

    node: NodeName = "localhost"
    model: ModelReference | None = None


class VerifyBody(Body):
    """Body of ``POST /v1/models/verify`` on a hive; without a model all are verified."""

    model_ref: ModelReference | None = None


class NodeVerifyBody(Body):
    """Body of ``POST /v2/models/verify``."""

    node: NodeName = "localhost"
    model: ModelReference | None = None


class PruneBody(Body):
    """Body of ``POST /v1/models/prune`` on a hive; without days no model is removed."""

    unused_for_days: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)] | None = None
    dry_run: bool = False


class NodePruneBody(PruneBody):
    """Body of ``POST /v2/models/prune``."""

    node: NodeName = "localhost"


class PlanRequest(Body):
    """Body of ``POST /v2/plan``."""

    model: ModelReference | None = None
    backend: BackendName | None = None
    device: DeviceIndex | None = None

    @model_validator(mode="after")
    def _device_needs_a_backend(self) -> PlanRequest:
        if self.device is not None and self.backend is None:
            raise PydanticCustomError("device", "device needs backend")
        return self


class WorkerIdBody(Body):
    worker_id: Identifier


class LeaseRequest(Body):
    """Body of ``POST /v1/lease``."""

    owner: Identifier
    ttl_seconds: float = Field(default=60, gt=0, le=86400)


class ShutdownRequest(Body):
    """Body of ``POST /v1/admin/shutdown`` on a worker."""

    graceful: bool = True
    timeout_seconds: float = Field(default=30, ge=0, le=3600)


class NodeNameBody(Body):
    node_name: NodeName


Note = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
"""One line that a person wrote for others."""


class CordonRequest(Body):
    """Body of ``POST /v2/nodes/<name>/cordon``."""

    reason: Note = "cordoned by an operator"


class DrainRequest(CordonRequest):
    """Body of ``POST /v2/nodes/<name>/drain``."""

    timeout_seconds: float = Field(default=300, ge=0, le=86400)


class RolloutRequest(Body):
    """Body of ``POST /v2/rollout``."""

    version: Annotated[str, StringConstraints(pattern=r"^\d{1,6}\.\d{1,6}\.\d{1,6}[A-Za-z0-9.+-]{0,32}$")]
    operator: Note


class NodeAddRequest(Body):
    """Body of ``POST /v2/registry/beehives/add``."""

    node_name: NodeName
    ssh_host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:][A-Za-z0-9._:-]{0,252}$")]
    ssh_port: int = Field(default=22, ge=1, le=65535)
    ssh_user: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._][A-Za-z0-9._-]{0,63}$")]
    ssh_key_path: NodePath | None = None
    git_repo_url: (
        Annotated[
            str,
            StringConstraints(
                pattern=r"^(?:(?:https|ssh|file)://[^\s\x00-\x1f\x7f]{1,2000}"
                r"|[A-Za-z0-9._]+@[A-Za-z0-9.-]+:[^\s\x00-\x1f\x7f]{1,2000})$"
            ),
        ]
        | None
    ) = None
    git_branch: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9._/][A-Za-z0-9._/-]{0,254}$"),
        AfterValidator(_no_parent_segment),
    ] = "main"
    install_path: str
    hive_port: Port = 9200
    backends: list[BackendName] | None = None
    devices: dict[BackendName, Annotated[int, Field(ge=0, le=1024)]] | None = None


B = TypeVar("B", bound=Body)


def validate(model: type[B], body: Any) -> B:
    """``body`` as ``model``.

    Raises:
        InvalidModelRef, InvalidBackend: the only violation is a malformed model reference or backend.
        InvalidRequest: anything else; ``details.errors`` lists every violation.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
    if len(found) == 1:
        context = found[0].get("ctx") or {}
        if found[0]["type"] == "model_ref":
            raise InvalidModelRef(str(context.get("got")), str(context.get("expected")))
        if found[0]["type"] == "backend":
            raise InvalidBackend(str(context.get("got")))
    raise InvalidRequest([_violation(entry) for entry in found])


_NEVER_ECHOED = {"prompt", "system", "stop"}


def _violation(entry: Any) -> dict[str, Any]:
    field = ".".join(str(part) for part in entry["loc"]) or "body"
    violation: dict[str, Any] = {"field": field, "constraint": entry["type"], "message": entry["msg"]}
    value = entry.get("input")
    is_short = isinstance(value, (bool, int, float)) or (
        isinstance(value, str) and re.fullmatch(r"[\x20-\x7e]{0,64}", value) is not None
    )
    # An unknown field may be a misspelt prompt.
    is_known = entry["type"] != "extra_forbidden"
    if is_short and is_known and field.split(".")[0] not in _NEVER_ECHOED:
        violation["value"] = value
    return violation
