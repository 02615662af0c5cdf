"""Configuration: command line over environment over TOML file over built-in default, checked key by key."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rbee.core.home import state_home
from rbee.core.references import DEFAULT_MODEL

WORKER_SETTINGS_VARIABLE = "RBEE_WORKER_SETTINGS"
"""The variable by which a hive hands [worker], [timing], [limits] and [log] to a worker, as JSON."""

ComputeType = Literal[
    "auto",
    "default",
    "float32",
    "float16",
    "bfloat16",
    "int16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
]


class SettingsError(Exception):
    """The configuration cannot be used; the text names file and key."""


def split_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` as its parts; an IPv6 host stands in brackets.

    Raises:
        ValueError: there is no port, or it is not in 0–65535.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"'{text}' is not HOST:PORT")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches ``host``; a daemon without a key listens nowhere else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(value: str) -> str:
    split_address(value)
    return value


Address = Annotated[str, AfterValidator(_address)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Slots = Annotated[int, Field(ge=1, le=256)]
Count = Annotated[int, Field(ge=1, le=1000)]
PortNumber = Annotated[int, Field(ge=1024, le=65535)]


class Section(BaseModel):
    """Base of the sections: an unknown key or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Auth(Section):
    api_key_file: str | None = None


class Queen(Section):
    url: str = "http://127.0.0.1:8080"
    listen_addr: Address = "127.0.0.1:8080"
    local_hive_port: PortNumber = 9200
    max_pending: int = Field(default=100, ge=1, le=100_000)


class Pool(Section):
    name: str = Field(default_factory=socket.gethostname)
    listen_addr: Address = "127.0.0.1:9200"
    queen_url: str | None = None
    worker_host: str | None = None
    worker_command: str = "llm-worker-rbee"
    worker_port_min: PortNumber = 8001
    worker_port_max: PortNumber = 9000
    keep_alive_policy: Literal["auto", "infinite", "immediate"] = "auto"


class Worker(Section):
    max_parallel_requests: Slots | Literal["auto"] = 1
    batch_lengths: Literal["near", "equal"] = "near"
    prefix_cache_mb: int = Field(default=256, ge=0, le=1_048_576)
    context_tokens: int = Field(default=2048, ge=16, le=1_048_576)
    compute_type: ComputeType = "auto"


class Models(Section):
    default: str = DEFAULT_MODEL


class Paths(Section):
    """Where state lives; unset keys are derived from ``RBEE_HOME``."""

    models_dir: str | None = None
    catalog_db: str | None = None
    cache_dir: str | None = None
    log_dir: str | None = None


class Remote(Section):
    binary_path: str | None = None
    git_repo_dir: str | None = None


class Ssh(Section):
    command: str = "ssh"


class Log(Section):
    level: Literal["mute", "trace", "debug", "info", "warn", "error", "fatal"] = "info"


class Hardware(Section):
    """What a probe cannot see, for instance inside containers; a stated value replaces the probe."""

    devices: (
        Annotated[str, Field(pattern=r"^(?:cpu|cuda|metal):\d{1,3}(?:,(?:cpu|cuda|metal):\d{1,3})*$")] | None
    ) = None
    ram_available_mb: int | None = Field(default=None, ge=0)
    vram_available_mb: int | None = Field(default=None, ge=0)


class Limits(Section):
    body_bytes: int = Field(default=1_048_576, ge=1024, le=1_073_741_824)
    invalid_per_second: int = Field(default=50, ge=1, le=1_000_000)


class Timing(Section):
    """Every time constant: ``_s`` in seconds, ``_ms`` in milliseconds."""

    ssh_connect_timeout_s: Seconds = 10
    ssh_attempts: Count = 3
    ssh_delays_ms: list[Annotated[int, Field(ge=0)]] = [0, 200, 400]
    hive_connect_timeout_s: Seconds = 10
    hive_connect_attempts: Count = 3
    hive_connect_delays_ms: list[Annotated[int, Field(ge=0)]] = [0, 200, 400]
    hive_start_timeout_s: Seconds = 60
    hive_start_poll_ms: Milliseconds = 500
    queen_probe_timeout_ms: Milliseconds = 500
    queen_start_timeout_s: Seconds = 30
    queen_start_poll_ms: Milliseconds = 100
    worker_start_timeout_s: Seconds = 30
    ready_poll_interval_s: Seconds = 2
    ready_poll_timeout_s: Seconds = 5
    loading_timeout_s: Seconds = 300
    queue_wait_s: Seconds = 300
    busy_retry_delays_s: list[Annotated[float, Field(ge=0)]] = [1, 2, 4]
    download_attempts: Count = 6
    download_delays_ms: list[Annotated[int, Field(ge=0)]] = [100, 200, 400, 800, 1600]
    download_stall_timeout_s: Seconds = 60
    inference_timeout_s: Annotated[int, Field(ge=1, le=3600)] = 300
    token_stall_timeout_s: Seconds = 60
    cancel_ack_timeout_s: Seconds = 5
    disconnect_check_s: Seconds = 1
    health_probe_interval_s: Seconds = 30
    health_probe_timeout_s: Seconds = 5
    health_probe_strikes: Count = 3
    process_check_interval_s: Seconds = 1
    idle_timeout_s: Seconds = 300
    idle_check_interval_s: Seconds = 1
    shutdown_ack_timeout_s: Seconds = 5
    shutdown_kill_after_s: Seconds = 10
    worker_drain_timeout_s: Seconds = 30
    hive_shutdown_timeout_s: Seconds = 30
    queen_shutdown_timeout_s: Seconds = 35
    queen_drain_timeout_s: Seconds = 30
    vram_recovery_timeout_s: Seconds = 5
    vram_recovery_poll_ms: Milliseconds = 100
    vram_recovery_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    lease_renew_s: Seconds = 10
    lease_ttl_s: Seconds = 60
    sse_keepalive_s: Seconds = 10


class Settings(Section):
    """The whole configuration of one program, with the state directory and the file it came from."""

    auth: Auth = Auth()
    queen: Queen = Queen()
    pool: Pool = Field(default_factory=Pool)
    worker: Worker = Worker()
    models: Models = Models()
    paths: Paths = Paths()
    remote: Remote = Remote()
    ssh: Ssh = Ssh()
    log: Log = Log()
    hardware: Hardware = Hardware()
    limits: Limits = Limits()
    timing: Timing = Timing()

    home: Path = Field(default=Path("~/.rbee"), exclude=True)
    source: Path | None = Field(default=None, exclude=True)
    """The config file in use, or None for the built-in defaults."""

    @property
    def models_dir(self) -> Path:
        return self._path(self.paths.models_dir, "models")

    @property
    def catalog_db(self) -> Path:
        return self._path(self.paths.catalog_db, "models.db")

    @property
    def cache_dir(self) -> Path:
        return self._path(self.paths.cache_dir, "cache")

    @property
    def log_dir(self) -> Path:
        return self._path(self.paths.log_dir, "logs")

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    def _path(self, stated: str | None, default: str) -> Path:
        return Path(stated).expanduser() if stated else self.home / default

    def for_worker(self, slots: int) -> str:
        """The values a hive passes on to a worker with ``slots``, as JSON for ``RBEE_WORKER_SETTINGS``."""
        shared = {"worker", "timing", "limits", "log"}
        passed = self.model_dump(mode="json", include=shared)
        passed["worker"]["max_parallel_requests"] = slots
        return json.dumps(passed)


_ENVIRONMENT = {
    "RBEE_QUEEN_URL": ("queen", "url"),
    "RBEE_MODELS_DIR": ("paths", "models_dir"),
    "RBEE_CATALOG_DB": ("paths", "catalog_db"),
    "RBEE_CACHE_DIR": ("paths", "cache_dir"),
    "RBEE_LOG_DIR": ("paths", "log_dir"),
    "RBEE_WORKER_HOST": ("pool", "worker_host"),
    "RBEE_LOG": ("log", "level"),
}


def load_settings(
    environ: Mapping[str, str],
    *,
    config: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Read the configuration.

    Args:
        environ: the process's environment.
        config: the ``--config`` flag; a missing file is an error.
        overrides: values of command line flags by section and key; None values are ignored.

    Raises:
        SettingsError: a file cannot be read, or a key is unknown, of the wrong type or out of range.
    """
    home = state_home(environ)
    file = _find_file(environ, config)
    merged: dict[str, dict[str, Any]] = _read_file(file) if file else {}
    where: dict[tuple[str, str], str] = {}
    for variable, (section, key) in _ENVIRONMENT.items():
        if environ.get(variable):
            merged.setdefault(section, {})[key] = environ[variable]
            where[(section, key)] = variable
    if environ.get(WORKER_SETTINGS_VARIABLE):
        for section, values in json.loads(environ[WORKER_SETTINGS_VARIABLE]).items():
            merged[section] = values
            where.update({(section, key): WORKER_SETTINGS_VARIABLE for key in values})
    for section, values in (overrides or {}).items():
        for key, value in values.items():
            if value is not None:
                merged.setdefault(section, {})[key] = value
                where[(section, key)] = "the command line"
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, file, where)) from None
    return settings.model_copy(update={"home": home, "source": file})


def _find_file(environ: Mapping[str, str], config: str | None) -> Path | None:
    for named, origin in ((config, "--config"), (environ.get("RBEE_CONFIG"), "RBEE_CONFIG")):
        if named:
            path = Path(named).expanduser()
            if not path.is_file():
                raise SettingsError(f"{origin} names a missing file: {path}")
            return path
    config_home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")) / ".config")
    candidates = (Path(config_home).expanduser() / "rbee" / "config.toml", Path("/etc/rbee/config.toml"))
    return next((path for path in candidates if path.is_file()), None)


def _read_file(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read: {error}") from None
    for section, values in content.items():
        if not isinstance(values, dict) or section in ("home", "source"):
            raise SettingsError(f"{file}: unknown key '{section}'")
    return content


def _explain(error: ValidationError, file: Path | None, where: Mapping[tuple[str, str], str]) -> str:
    lines = []
    for entry in error.errors(include_url=False):
        parts = [str(part) for part in entry["loc"]]
        origin = where.get((parts[0], parts[1]) if len(parts) > 1 else ("", ""), str(file))
        problem = "unknown key" if entry["type"] == "extra_forbidden" else entry["msg"]
        lines.append(f"{origin}: {'.'.join(parts)}: {problem}")
    return "; ".join(lines)


def prepare_home(settings: Settings) -> None:
    """Create the state directory with mode 0700, and its run folder."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.run_dir.mkdir(mode=0o700, exist_ok=True)


def load_api_key(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """The fleet key from ``RBEE_API_KEY`` or ``auth.api_key_file``; None when neither is set.

    Raises:
        SettingsError: the file is missing, readable by others, or not exactly one well-formed line.
    """
    value = environ.get("RBEE_API_KEY")
    if value is not None and value != "":
        return check_key(value, "RBEE_API_KEY")
    if settings.auth.api_key_file is None:
        return None
    return read_key_file(Path(settings.auth.api_key_file).expanduser())


def read_key_file(path: Path) -> str:
    """The key in ``path``: mode 0600 or 0400, exactly one non-empty line.

    Raises:
        SettingsError: the file breaks one of these rules.
    """
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode not in (0o600, 0o400):
            raise SettingsError(f"{path}: mode {mode:04o} is too open for a key; run: chmod 600 {path}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: the key file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: the key file is not text") from None
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != 1 or not lines[0].strip():
        raise SettingsError(f"{path}: the key file must hold exactly one non-empty line")
    return check_key(lines[0], str(path))


def check_key(value: str, origin: str) -> str:
    """``value`` when it is a well-formed key.

    Raises:
        SettingsError: it is not; the message names ``origin``, never the value.
    """
    printable = all("\x21" <= c <= "\x7e" for c in value)
    if not printable or not 16 <= len(value) <= 512:
        raise SettingsError(f"{origin}: a key has 16 to 512 printable ASCII characters without blanks")
    return value
