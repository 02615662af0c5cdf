#!/usr/bin/python
"""An Ansible module: removes folders that hold nothing any more."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: rbee_empty_folders
short_description: Removes folders that are empty
description:
  - Removes each of the folders that is empty when its turn comes; others stay as they are.
options:
  paths:
    description: The folders, inner ones first.
    type: list
    elements: str
    required: true
author: rbee
"""
EXAMPLES = r"""
- name: Remove what is empty
  rbee_empty_folders:
    paths: [/opt/rbee/releases, /opt/rbee]
"""
RETURN = r"""
removed:
  description: The folders that were removed.
  returned: always
  type: list
  elements: str
"""


def main():
    paths = {"type": "list", "elements": "str", "required": True}
    module = AnsibleModule(argument_spec={"paths": paths}, supports_check_mode=True)
    removed = []
    for path in module.params["paths"]:
        if os.path.islink(path) or not os.path.isdir(path):
            continue
        # In check mode the inner ones are still there.
        gone = {os.path.basename(one) for one in removed if os.path.dirname(one) == path}
        if set(os.listdir(path)) - gone:
            continue
        if not module.check_mode:
            os.rmdir(path)
        removed.append(path)
    module.exit_json(changed=bool(removed), removed=removed)


if __name__ == "__main__":
    main()
