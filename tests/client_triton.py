"""Triton's client, over HTTP or gRPC: PROTOCOL ADDRESS. Run by tests/clients.py, in an environment of its own.

Both have the same calls and the same names; their answers are made alike here.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient.utils import InferenceServerException

if TYPE_CHECKING:
    from collections.abc import Callable

protocol, address = sys.argv[1:]
triton: Any = importlib.import_module(f"tritonclient.{protocol}")
is_http = protocol == "http"
client = triton.InferenceServerClient(address)


def tensor(*texts: str, name: str = "text", **options: Any) -> Any:
    one = triton.InferInput(name, [len(texts)], "BYTES")
    one.set_data_from_numpy(np.array(texts, dtype=np.object_), **options)
    return one


def plain(array: Any) -> Any:
    if array is None:
        return None
    return [one.decode() if isinstance(one, bytes) else one for one in array.flatten().tolist()]


def infer(*inputs: Any, outputs: Any = None, **options: Any) -> dict[str, Any]:
    """The outputs by name, flat."""
    result = client.infer("mood", list(inputs), outputs=outputs, **options)
    response = result.get_response() if is_http else result.get_response(as_json=True)
    names = [output["name"] for output in response["outputs"]]
    return {
        **{name: plain(result.as_numpy(name)) for name in names},
        "id": response.get("id"),
        "shapes": {name: list(result.as_numpy(name).shape) for name in names},
    }


def refused(call: Callable[[], Any]) -> list[str]:
    """The status and the message of the client's error."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    raise AssertionError("it is not refused")


def as_json(answer: Any) -> Any:
    """gRPC's messages as the JSON that HTTP has."""
    if is_http:
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


lovely, dull = "a lovely film", "the dull town"
both = tensor(lovely, dull)
version = as_json(client.get_model_metadata("mood"))["versions"][0]
found = {
    "is_server_live": client.is_server_live(),
    "is_server_ready": client.is_server_ready(),
    "is_model_ready": client.is_model_ready("mood"),
    "is_model_ready of a version": client.is_model_ready("mood", version),
    "get_server_metadata": as_json(client.get_server_metadata()),
    "get_model_metadata": as_json(client.get_model_metadata("mood")),
    "get_model_repository_index": as_json(client.get_model_repository_index()),
    "infer": infer(both, request_id="42"),
    "infer of a version": infer(both, model_version=version),
    "infer, a pair": infer(tensor("a film"), tensor("was good", name="text_pair")),
    "infer, classification": infer(both, outputs=[triton.InferRequestedOutput("probabilities", class_count=1)]),
    "infer, parameters": infer(both, parameters={"top_k": 2}),
    "infer, priority and timeout": infer(both, priority=1, timeout=10_000_000),
    "infer, compressed": infer(
        both, **{"request_compression_algorithm" if is_http else "compression_algorithm": "gzip"}
    ),
    "infer, late": refused(lambda: infer(tensor(*[lovely] * 50), timeout=1)),
    "infer, unknown parameter": refused(lambda: infer(both, parameters={"colour": 1})),
    "infer, sequence": refused(lambda: infer(both, sequence_id=7, sequence_start=True)),
    "infer, too many texts": refused(lambda: infer(tensor(*[lovely] * 2000))),
    "infer, no such model": refused(lambda: client.infer("nobody", [both])),
}
if is_http:
    outputs = [triton.InferRequestedOutput("label", binary_data=False)]
    found["infer, JSON"] = infer(tensor(lovely, dull, binary_data=False), outputs=outputs)
    found["infer, deflated"] = infer(both, request_compression_algorithm="deflate")
else:
    found["infer, client_timeout"] = refused(lambda: infer(tensor(*[lovely] * 500), client_timeout=0.001))
client.close()
print(json.dumps(found))
