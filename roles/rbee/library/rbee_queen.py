#!/usr/bin/python
"""An Ansible module: takes a node out of the queen's service, tries it, and puts it back."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: rbee_queen
short_description: Takes a node out of the queen's service and puts it back
description:
  - Runs where the queen can be reached, which is the control machine; the node itself needs no way to the queen.
  - A cordon that somebody else has set, told by its reason, stays as it is.
options:
  url:
    description: The queen.
    type: str
    required: true
  api_key:
    description: The fleet key.
    type: str
    default: ""
  node:
    description: The node, by the name the queen knows it by.
    type: str
    required: true
  state:
    description:
      - V(seen) only looks whether an interrupted run has left the node out of service.
      - V(drained) cordons the node and waits until nothing runs there; it fails when something still does.
      - V(tried) has the node, though it is cordoned, produce one token; the queen starts its hive if need be.
      - V(uncordoned) lets it take tasks again.
    type: str
    choices: [seen, drained, tried, uncordoned]
    required: true
  reason:
    description: Why the node takes no tasks; also tells our own cordon from those of others.
    type: str
    default: its software is being changed
  model:
    description: The model for V(tried); empty for the smallest one the node has.
    type: str
    default: ""
  timeout:
    description: Seconds until the node must be empty, or the token there.
    type: int
    default: 120
author: rbee
"""
EXAMPLES = r"""
- name: Take the node out of service
  rbee_queen:
    url: http://127.0.0.1:8080
    node: "{{ inventory_hostname }}"
    state: drained
  delegate_to: localhost
"""
RETURN = r"""
is_left:
  description: Whether our own cordon is there already.
  returned: for V(seen)
  type: bool
model:
  description: The model that answered; empty when the node has none.
  returned: for V(tried)
  type: str
text:
  description: The token.
  returned: for V(tried), when there is a model
  type: str
seconds:
  description: How long it took.
  returned: always
  type: float
"""

MARGIN_S = 30


class Refused(Exception):
    """The queen did not do it; the text says why."""


class UnknownNode(Refused):
    """The queen has no such node."""


class Queen:
    """The queen's API as far as one node is concerned."""

    def __init__(self, url, key, node):
        self.url, self.key, self.node = url.rstrip("/"), key, node

    def open(self, method, path, body=None, timeout=MARGIN_S):
        """The open answer to a request.

        Raises:
            Refused: it was refused, or nobody answered.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = "Bearer " + self.key
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, headers, method=method)  # noqa: S310 (http, from the operator)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            return opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            code, message = told_by(error.read(65536), error.code)
            raise (UnknownNode if code == "NODE_NOT_FOUND" else Refused)(message) from None
        except OSError as error:
            raise Refused(f"{self.url} does not answer: {error}") from None

    def ask(self, method, path, body=None, timeout=MARGIN_S):
        with self.open(method, path, body, timeout) as answer:
            return json.loads(answer.read())

    def state(self):
        return self.ask("GET", "/v2/nodes/" + self.node)

    def post(self, what, body, timeout=MARGIN_S):
        return self.ask("POST", "/v2/nodes/" + self.node + "/" + what, body, timeout)


def told_by(content, status):
    """Code and message of an error answer."""
    try:
        error = json.loads(content)["error"]
        return error["code"], error["message"]
    except (KeyError, TypeError, ValueError):
        return "", f"status {status}: {content[:200].decode(errors='replace')}"


def see(queen, reason):
    """Whether our own cordon is there; a node that is not registered yet has none."""
    try:
        state = queen.state()
    except UnknownNode:
        return {"changed": False, "is_left": False}
    return {"changed": False, "is_left": state["cordoned"] and state["reason"] == reason}


def drain(queen, reason, timeout):
    """Whether the node was in service before.

    Raises:
        Refused: something still runs there.
    """
    before = queen.state()
    kept = before["reason"] if before["cordoned"] else reason
    body = {"reason": kept, "timeout_seconds": timeout}
    after = queen.post("drain", body, timeout + MARGIN_S)
    if not after["drained"]:
        raise Refused(
            f"{after['open_tasks']} tasks and {after['busy_slots']} slots of workers are still busy on "
            f"{queen.node} after {timeout} seconds; a longer rbee_hive_drain_timeout_s lets them end"
        )
    return {"changed": not before["cordoned"]}


def uncordon(queen, reason):
    """Lift our own cordon; whether there was one."""
    if not see(queen, reason)["is_left"]:
        return {"changed": False}
    queen.post("uncordon", {})
    return {"changed": True}


def first_token(stream):
    """The first token of a whole answer."""
    token, is_done = None, False
    for raw in stream:
        line = raw.decode(errors="replace").strip()
        if line == "data: [DONE]":
            break
        if not line.startswith("data:"):
            continue
        event = json.loads(line[5:])
        if "error" in event:
            raise Refused(event["error"].get("message") or json.dumps(event["error"]))
        token = event.get("token", token) if token is None else token
        is_done = is_done or event.get("done") is True
    if token is None or not is_done:
        raise Refused("the answer ended without a token" if token is None else "the answer ended too early")
    return token


def try_node(queen, model, timeout):
    """One token from a model of the node; listing its models starts its hive where none runs."""
    listed = queen.ask(
        "GET", "/v2/models/list?" + urllib.parse.urlencode({"node": queen.node}), None, timeout
    )
    if not model and listed["models"]:
        model = min(listed["models"], key=lambda one: one.get("size_bytes") or 0)["model_ref"]
    if not model:
        return {"changed": False, "model": ""}
    body = {
        "node": queen.node,
        "ignore_cordon": True,
        "model": model,
        "prompt": "Hello",
        "max_tokens": 1,
        "temperature": 0.0,
        "timeout_seconds": timeout,
    }
    with queen.open("POST", "/v2/tasks", body, timeout) as stream:
        return {"changed": False, "model": model, "text": first_token(stream)}


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "node": {"type": "str", "required": True},
            "state": {"type": "str", "required": True, "choices": ["seen", "drained", "tried", "uncordoned"]},
            "reason": {"type": "str", "default": "its software is being changed"},
            "model": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    given, began = module.params, time.monotonic()
    if module.check_mode and given["state"] != "seen":
        module.exit_json(changed=False, seconds=0.0)
    queen = Queen(given["url"], given["api_key"], given["node"])
    try:
        if given["state"] == "seen":
            result = see(queen, given["reason"])
        elif given["state"] == "drained":
            result = drain(queen, given["reason"], given["timeout"])
        elif given["state"] == "tried":
            result = try_node(queen, given["model"], given["timeout"])
        else:
            result = uncordon(queen, given["reason"])
    except (Refused, OSError, ValueError, KeyError) as failure:
        module.fail_json(msg=str(failure) or type(failure).__name__)
    module.exit_json(seconds=round(time.monotonic() - began, 3), **result)


if __name__ == "__main__":
    main()
