"""The messages that a client was generated from: MODULE. Run by tests/clients.py, in an environment of its own."""

from __future__ import annotations

import base64
import importlib
import json
import sys

module = importlib.import_module(sys.argv[1])
print(json.dumps({"file": base64.b64encode(module.DESCRIPTOR.serialized_pb).decode()}))
