"""Other programs that relay token streams, started as their documents say, to measure ours against."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from bench.fleet import STATE, free_port

_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream worker {{ server {worker}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://worker;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
_LITELLM = "litellm[proxy]>=1.50"


@contextmanager
def nginx(worker: str) -> Iterator[tuple[str, int] | None]:
    """URL and pid of a bare proxy to ``worker`` (host:port); None where nginx is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    folder = STATE / "nginx"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, worker=worker, port=port))
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _await(url, process)
            yield url, process.pid
        finally:
            process.terminate()


@contextmanager
def litellm(worker: str, key: str) -> Iterator[tuple[str, int, str] | None]:
    """URL, pid and key of LiteLLM's proxy before ``worker``; installed into an environment of its own."""
    home = STATE / "litellm"
    program = home / "bin" / "litellm"
    if not program.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", _LITELLM]
            subprocess.run(pip, check=True)
        except subprocess.CalledProcessError as error:
            print(f"LiteLLM is left out: it cannot be installed ({error})", file=sys.stderr)
            shutil.rmtree(home, ignore_errors=True)
            yield None
            return
    port = free_port()
    served = {
        "model_name": "bench",
        "litellm_params": {"model": "openai/bench", "api_base": f"http://{worker}/v1", "api_key": key},
    }
    config = home / "config.yaml"
    config.write_text(json.dumps({"model_list": [served]}))
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    own_key = f"sk-{secrets.token_hex(32)}"
    environment = {**os.environ, "LITELLM_MASTER_KEY": own_key}
    with (
        (home / "proxy.log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            _await(f"{url}/health/liveliness", process, 180)
            yield url, process.pid, own_key
        finally:
            process.kill()


def _await(url: str, process: subprocess.Popen[bytes], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            requests.get(url, timeout=5)
            return
        except requests.ConnectionError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"nothing came to listen at {url}") from None
            time.sleep(0.1)


def worker_address(url: str) -> str:
    """``host:port`` of a URL."""
    return url.partition("://")[2].rstrip("/")
