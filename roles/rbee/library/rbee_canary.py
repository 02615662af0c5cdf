#!/usr/bin/python
"""An Ansible module: one real token from a real model, through the hive of a node."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: rbee_canary
short_description: Asks a hive for one real token
description:
  - Has the hive start a worker for O(model), asks it for one token, and ends it again.
options:
  url:
    description: The hive.
    type: str
    required: true
  api_key:
    description: The fleet key.
    type: str
    default: ""
  model:
    description: The model, fetched if need be; empty for the smallest one of the node, and none is asked where it has none.
    type: str
    default: ""
  timeout:
    description: Seconds until a token must be there.
    type: int
    default: 120
author: rbee
"""
EXAMPLES = r"""
- name: Ask for one token
  rbee_canary:
    url: http://127.0.0.1:9200
"""
RETURN = r"""
model:
  description: The model that answered; empty when the node has none.
  returned: always
  type: str
text:
  description: The token.
  returned: when there is a model
  type: str
"""

POLL_S = 0.2


class NoToken(Exception):
    """The node did not produce a token; the text says where it stopped."""


class Node:
    """The services of a node, asked until a common deadline."""

    def __init__(self, url, key, timeout):
        self.url, self.key, self.deadline = url.rstrip("/"), key, time.monotonic() + timeout

    def left(self):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise NoToken("no token came in time")
        return left

    def open(self, method, url, body=None, key=None):
        """The open answer to a request.

        Raises:
            NoToken: it was refused, or nobody answered.
        """
        headers = {"Content-Type": "application/json"}
        if key or self.key:
            headers["Authorization"] = "Bearer " + (key or self.key)
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, content, headers, method=method)  # noqa: S310 (http, from the roles)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            return opener.open(request, timeout=self.left())
        except urllib.error.HTTPError as error:
            told = error.read(4096).decode(errors="replace")
            raise NoToken(f"{method} {url}: {error.code} {told}") from None
        except OSError as error:
            raise NoToken(f"{method} {url}: {error}") from None

    def ask(self, method, path, body=None):
        with self.open(method, self.url + path, body) as answer:
            return json.loads(answer.read())


def choose_model(node, wanted):
    """The model that is wanted, else the smallest one of the node, else none."""
    models = [] if wanted else node.ask("GET", "/v1/models")["models"]
    return min(models, key=lambda model: model.get("size_bytes") or 0)["model_ref"] if models else wanted


def first_token(node, worker):
    """The first token of the worker's answer to a word."""
    body = {"prompt": "Hello", "max_tokens": 1, "temperature": 0.0}
    with node.open("POST", worker["url"] + "/v1/inference", body, worker["api_key"]) as stream:
        for raw in stream:
            line = raw.decode(errors="replace").strip()
            if line.startswith("data:") and line != "data: [DONE]":
                event = json.loads(line[5:])
                if "token" in event:
                    return event["token"]
                if "error" in event:
                    raise NoToken(json.dumps(event["error"]))
    raise NoToken("the stream ended without a token")


def wait_ready(node, worker):
    while True:
        records = node.ask("GET", "/v1/workers/list")["workers"]
        state = next((one["state"] for one in records if one["id"] == worker["worker_id"]), "ended")
        if state in ("idle", "busy"):
            return
        if state in ("ended", "error"):
            raise NoToken("the worker is in state " + state)
        node.left()
        time.sleep(POLL_S)


def run(node, wanted):
    model = choose_model(node, wanted)
    if not model:
        return {"model": ""}
    worker = node.ask("POST", "/v1/workers/spawn", {"model_ref": model})
    try:
        wait_ready(node, worker)
        return {"model": model, "text": first_token(node, worker)}
    finally:
        node.deadline = max(node.deadline, time.monotonic() + 10)
        node.ask("DELETE", "/v1/workers/" + worker["worker_id"])


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "model": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=False,
    )
    params = module.params
    try:
        module.exit_json(
            changed=False, **run(Node(params["url"], params["api_key"], params["timeout"]), params["model"])
        )
    except NoToken as failure:
        module.fail_json(msg="The node produced no token", stderr=str(failure))


if __name__ == "__main__":
    main()
