"""Configuration: precedence, strictness, key files, and the defaults of the contract."""

import os
from pathlib import Path
from typing import Any

import pytest

from rbee.core.settings import SettingsError, Timing, load_api_key, load_settings, read_key_file

KEY = "0123456789abcdef"

DEFAULT_TIMING: dict[str, Any] = {
    "ssh_connect_timeout_s": 10,
    "ssh_attempts": 3,
    "ssh_delays_ms": [0, 200, 400],
    "hive_connect_timeout_s": 10,
    "hive_connect_attempts": 3,
    "hive_connect_delays_ms": [0, 200, 400],
    "hive_start_timeout_s": 60,
    "hive_start_poll_ms": 500,
    "queen_probe_timeout_ms": 500,
    "queen_start_timeout_s": 30,
    "queen_start_poll_ms": 100,
    "worker_start_timeout_s": 30,
    "ready_poll_interval_s": 2,
    "ready_poll_timeout_s": 5,
    "loading_timeout_s": 300,
    "queue_wait_s": 300,
    "busy_retry_delays_s": [1, 2, 4],
    "download_attempts": 6,
    "download_delays_ms": [100, 200, 400, 800, 1600],
    "download_stall_timeout_s": 60,
    "inference_timeout_s": 300,
    "token_stall_timeout_s": 60,
    "cancel_ack_timeout_s": 5,
    "disconnect_check_s": 1,
    "health_probe_interval_s": 30,
    "health_probe_timeout_s": 5,
    "health_probe_strikes": 3,
    "process_check_interval_s": 1,
    "idle_timeout_s": 300,
    "idle_check_interval_s": 1,
    "shutdown_ack_timeout_s": 5,
    "shutdown_kill_after_s": 10,
    "worker_drain_timeout_s": 30,
    "hive_shutdown_timeout_s": 30,
    "queen_shutdown_timeout_s": 35,
    "queen_drain_timeout_s": 30,
    "vram_recovery_timeout_s": 5,
    "vram_recovery_poll_ms": 100,
    "vram_recovery_ratio": 0.9,
    "lease_renew_s": 10,
    "lease_ttl_s": 60,
    "sse_keepalive_s": 10,
}


def test_every_time_constant_has_the_default_of_the_contract() -> None:
    assert Timing().model_dump() == DEFAULT_TIMING


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "RBEE_CONFIG": str(tmp_path / "c.toml")}


def write(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text)


def test_flag_beats_environment_beats_file_beats_default(env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, "")
    assert load_settings(env).queen.url == "http://127.0.0.1:8080"
    write(tmp_path, '[queen]\nurl = "http://127.0.0.1:1111"')
    assert load_settings(env).queen.url == "http://127.0.0.1:1111"
    env["RBEE_QUEEN_URL"] = "http://127.0.0.1:2222"
    assert load_settings(env).queen.url == "http://127.0.0.1:2222"
    flagged = load_settings(env, overrides={"queen": {"url": "http://127.0.0.1:3333"}})
    assert flagged.queen.url == "http://127.0.0.1:3333"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[queen]\nurll = 'x'", "queen.urll"),
        ("[surprise]\na = 1", "surprise"),
        ("top = 1", "top"),
        ("home = '/x'", "home"),
        ("[timing]\nidle_timeout_s = 'soon'", "timing.idle_timeout_s"),
        ("[timing]\nidle_timeout_s = -1", "timing.idle_timeout_s"),
        ("[worker]\ncompute_type = 'int3'", "worker.compute_type"),
        ("[queen]\nlisten_addr = 'nowhere'", "queen.listen_addr"),
        ("not toml at all", "c.toml"),
    ],
)
def test_a_bad_file_is_refused_by_file_and_key(
    env: dict[str, str], tmp_path: Path, text: str, named: str
) -> None:
    write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_settings(env)
    assert named in str(caught.value)
    assert "c.toml" in str(caught.value)


def test_a_named_config_that_is_missing_is_an_error(env: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="RBEE_CONFIG"):
        load_settings(env)


def test_the_xdg_file_is_found_and_the_home_moves_the_paths(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "rbee"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[paths]\nmodels_dir = "/srv/models"')
    settings = load_settings({"HOME": str(tmp_path), "RBEE_HOME": str(tmp_path / "state")})
    assert settings.source == folder / "config.toml"
    assert settings.models_dir == Path("/srv/models")
    assert settings.catalog_db == tmp_path / "state" / "models.db"


@pytest.mark.parametrize("stated", ["0", "257", "many"])
def test_slots_are_a_number_in_range_or_auto(env: dict[str, str], tmp_path: Path, stated: str) -> None:
    write(tmp_path, 'worker.max_parallel_requests = "auto"')
    assert load_settings(env).worker.max_parallel_requests == "auto"
    value = int(stated) if stated.isdigit() else stated
    with pytest.raises(SettingsError, match="max_parallel_requests"):
        load_settings(env, overrides={"worker": {"max_parallel_requests": value}})


def test_a_hive_passes_its_worker_and_timing_values_on(env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, "[worker]\ncontext_tokens = 512\n[timing]\ntoken_stall_timeout_s = 7.5")
    passed = load_settings(env).for_worker(slots=6)
    received = load_settings({"HOME": str(tmp_path), "RBEE_WORKER_SETTINGS": passed})
    assert received.worker.context_tokens == 512
    assert received.worker.max_parallel_requests == 6
    assert received.timing.token_stall_timeout_s == 7.5


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_key_file_is_read_without_its_newline(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    os.chmod(file, mode)
    assert read_key_file(file) == KEY


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (KEY, 0o640),
        (KEY, 0o644),
        ("", 0o600),
        ("\n", 0o600),
        ("   ", 0o600),
        (f"{KEY}\n{KEY}\n", 0o600),
        ("short", 0o600),
        ("with blank 0123456789", 0o600),
        ("é" * 20, 0o600),
        ("x" * 513, 0o600),
    ],
)
def test_a_doubtful_key_file_is_refused_without_showing_the_key(
    tmp_path: Path, content: str, mode: int
) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    os.chmod(file, mode)
    with pytest.raises(SettingsError) as caught:
        read_key_file(file)
    assert KEY not in str(caught.value)


def test_the_environment_key_beats_the_file_and_is_checked(env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, '[auth]\napi_key_file = "/missing"')
    settings = load_settings(env)
    assert load_api_key(settings, {"RBEE_API_KEY": KEY}) == KEY
    with pytest.raises(SettingsError):
        load_api_key(settings, {"RBEE_API_KEY": "short"})
    with pytest.raises(SettingsError, match="missing"):
        load_api_key(settings, {})
