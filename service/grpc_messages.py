"""The messages of inference.GRPCInferenceService, made from a table when this is imported.

They are in a pool of their own: Triton's and KServe's clients register the same names in the default one, and each
process can have them there once. tests/test_v2_grpc.py holds the table against both. It is not among the dialects,
because Ray's own processes import it, which are to keep no metrics.
Source: open_inference_grpc.proto of https://github.com/kserve/open-inference-protocol; RepositoryIndex is Triton's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    "RepositoryIndex",
)
TENSOR = "name string 1, datatype string 2, repeated shape int64 3"
TYPED = f"{TENSOR}, map parameters InferParameter 4, contents InferTensorContents 5"
# Message: fields, each with its type and number.
MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live bool 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready bool 1",
    "ModelReadyRequest": "name string 1, version string 2",
    "ModelReadyResponse": "ready bool 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name string 1, version string 2, repeated extensions string 3",
    "ModelMetadataRequest": "name string 1, version string 2",
    "ModelMetadataResponse": "name string 1, repeated versions string 2, platform string 3, "
    "repeated inputs ModelMetadataResponse.TensorMetadata 4, repeated outputs ModelMetadataResponse.TensorMetadata 5",
    "ModelMetadataResponse.TensorMetadata": TENSOR,
    "InferParameter": "oneof bool_param bool 1, oneof int64_param int64 2, oneof string_param string 3, "
    "oneof double_param double 4, oneof uint64_param uint64 5",
    "InferTensorContents": "repeated bool_contents bool 1, repeated int_contents int32 2, "
    "repeated int64_contents int64 3, repeated uint_contents uint32 4, repeated uint64_contents uint64 5, "
    "repeated fp32_contents float 6, repeated fp64_contents double 7, repeated bytes_contents bytes 8",
    "ModelInferRequest": "model_name string 1, model_version string 2, id string 3, map parameters InferParameter 4, "
    "repeated inputs ModelInferRequest.InferInputTensor 5, "
    "repeated outputs ModelInferRequest.InferRequestedOutputTensor 6, repeated raw_input_contents bytes 7",
    "ModelInferRequest.InferInputTensor": TYPED,
    "ModelInferRequest.InferRequestedOutputTensor": "name string 1, map parameters InferParameter 2",
    "ModelInferResponse": "model_name string 1, model_version string 2, id string 3, map parameters InferParameter 4, "
    "repeated outputs ModelInferResponse.InferOutputTensor 5, repeated raw_output_contents bytes 6",
    "ModelInferResponse.InferOutputTensor": TYPED,
    "RepositoryIndexRequest": "repository_name string 1, ready bool 2",
    "RepositoryIndexResponse": "repeated models RepositoryIndexResponse.ModelIndex 1",
    "RepositoryIndexResponse.ModelIndex": "name string 1, version string 2, state string 3, reason string 4",
}


def add_field(message: DescriptorProto, path: str, text: str) -> None:
    """Add the field that the text describes to the message of this path."""
    *kinds, name, type_name, number = text.split()
    kind = kinds[0] if kinds else ""
    label = "LABEL_REPEATED" if kind in ("repeated", "map") else "LABEL_OPTIONAL"
    field = message.field.add(name=name, number=int(number), label=label)
    if kind == "map":  # as protoc writes it: pairs of key and value
        pair = message.nested_type.add(name=f"{name.title()}Entry", options={"map_entry": True})
        add_field(pair, "", "key string 1")
        add_field(pair, "", f"value {type_name} 2")
        type_name = f"{path}.{pair.name}"
    if kind == "oneof":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if type_name[0].isupper():
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{type_name}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{type_name.upper()}")


def described() -> FileDescriptorProto:
    """The file that protoc would make of the .proto."""
    file = FileDescriptorProto(name="heed/open_inference_grpc.proto", package=PACKAGE, syntax="proto3")
    added: dict[str, DescriptorProto] = {}
    for path, fields in MESSAGES.items():
        outer, _, name = path.rpartition(".")
        added[path] = message = added[outer].nested_type.add(name=name) if outer else file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            add_field(message, path, field)
    service = file.service.add(name=SERVICE.removeprefix(f"{PACKAGE}."))
    for method in METHODS:
        sides = (f".{PACKAGE}.{method}{side}" for side in ("Request", "Response"))
        service.method.add(name=method, **dict(zip(("input_type", "output_type"), sides, strict=True)))
    return file


POOL = DescriptorPool()
POOL.Add(described())


def message(name: str) -> Any:
    """The class of a message."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
