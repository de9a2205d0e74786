"""The methods of inference.GRPCInferenceService on a gRPC server, without Ray; tests/test_serve_grpc.py has Ray's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from clients import KSERVE, TRITON, calls
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from service.dialects.v2_grpc import CODES, handlers, sooner
from service.grpc_messages import METHODS, SERVICE, described, message
from service.keys import new_key
from service.launch import ray_environment
from service.models import Models
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model.bundle import Bundle

    Call = Callable[..., Any]

REQUEST, TEXTS = message("ModelInferRequest"), ["a lovely film", "the dull town"]


@pytest.fixture(scope="module")
def call(bundle_folder: Path) -> Iterator[Call]:
    """call(METHOD, message or bytes) answers with a message; what is refused raises grpc.RpcError."""
    settings = Settings(precision="fp32", max_texts_per_request=50)
    with calling(Service(Models([Spec("mood", bundle_folder)], settings), settings)) as send:
        yield send


@contextlib.contextmanager
def calling(service: Service) -> Iterator[Call]:
    """A server of the service's methods, and what calls it."""
    with asyncio.Runner() as runner:
        lifespan = service.lifespan(service.asgi())
        runner.run(lifespan.__aenter__())

        async def start() -> tuple[grpc.aio.Server, grpc.aio.Channel]:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers(service)),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            return server, grpc.aio.insecure_channel(f"127.0.0.1:{port}")

        server, channel = runner.run(start())

        def send(method: str, body: Any, **options: Any) -> Any:
            async def ask() -> bytes:
                raw = body if isinstance(body, bytes) else body.SerializeToString()
                return bytes(await channel.unary_unary(f"/{SERVICE}/{method}")(raw, timeout=20, **options))

            return message(f"{method}Response").FromString(runner.run(ask()))

        try:
            yield send
        finally:
            runner.run(channel.close())
            runner.run(server.stop(None))
            runner.run(lifespan.__aexit__(None, None, None))


def packed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def infer(*texts: str, **fields: Any) -> Any:
    contents = {"bytes_contents": [text.encode() for text in texts]}
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "contents": contents}
    return REQUEST(**{"model_name": "mood", "inputs": [tensor]} | fields)


def raw(*raws: bytes, **tensor: Any) -> Any:
    inputs = [{"name": "text", "shape": [1], "datatype": "BYTES"} | tensor]
    return REQUEST(model_name="mood", inputs=inputs, raw_input_contents=raws)


def refusal(call: Call, method: str, body: Any, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call(method, body, **options)
    return caught.value


def test_typed_texts_get_typed_outputs_and_raw_ones_raw(call: Call, bundle: Bundle) -> None:
    typed = call("ModelInfer", infer(*TEXTS, id="42"))
    assert (typed.model_name, typed.model_version, typed.id) == ("mood", bundle.version, "42")
    names = ["label", "score", "probabilities", "logits", "label_set", "abstained"]
    assert [output.name for output in typed.outputs] == names
    assert list(typed.outputs[0].contents.bytes_contents) == [b"positive", b"negative"]
    assert list(typed.outputs[4].contents.bool_contents) == [False, True, True, False]
    bare = call("ModelInfer", raw(packed(*(text.encode() for text in TEXTS)), shape=[2]))
    assert bare.raw_output_contents[0] == packed(b"positive", b"negative")
    assert struct.unpack("<4f", bare.raw_output_contents[3]) == pytest.approx(typed.outputs[3].contents.fp32_contents)
    asked = infer(*TEXTS, parameters={"binary_data_output": {"bool_param": True}})
    assert call("ModelInfer", asked).raw_output_contents == bare.raw_output_contents


def test_parameters_of_any_kind_change_the_answer(call: Call) -> None:
    for kind in ("int64_param", "uint64_param"):
        answer = call("ModelInfer", infer(*TEXTS, parameters={"top_k": {kind: 2}}))
        assert list(answer.outputs[0].shape) == [2, 2]
    explained = call("ModelInfer", infer(*TEXTS, parameters={"explain": {"string_param": "negative"}}))
    assert explained.outputs[-1].name == "explanation"
    wanted = [{"name": "logits", "parameters": {"classification": {"int64_param": 1}}}]
    [ranked] = call("ModelInfer", infer(*TEXTS, outputs=wanted)).outputs
    assert [one.split(b":")[2] for one in ranked.contents.bytes_contents] == [b"positive", b"negative"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff\xff", "the message is no ModelInferRequest"),
        (b"", "inputs: "),
        (REQUEST(model_name="mood"), "inputs: "),
        (infer("a", inputs=[{"name": "t", "shape": [1], "datatype": "FP32"}]), "Input should be 'BYTES'"),
        (infer("a", inputs=[{"name": "t", "shape": [1], "datatype": "BYTES"}]), "send the texts once"),
        (raw(packed(b"a"), contents={"bytes_contents": [b"a"]}), "send the texts once"),
        (raw(packed(b"a"), packed(b"a")), "there are 2 for 1 inputs"),
        (raw(packed(b"a"), parameters={"binary_data_size": {"int64_param": 9}}), "binary_data_size"),
        (raw(b"\xff\xff\xff\xffa"), "longer than the binary data"),
        (raw(packed(b"\xff")), "not UTF-8"),
        (raw(packed(b"a"), shape=[-1]), "inputs[0].shape"),
        (raw(packed(b"a"), shape=[2**62, 2**62]), "n from 1 to 50"),
        (infer("a", parameters={"colour": {"int64_param": 1}}), "there are: top_k"),
        (infer("a", parameters={"top_k": {}}), "a parameter has no value"),
        (infer("a", parameters={"top_k": {"double_param": 2.5}}), "parameters.top_k"),
        (infer("a", parameters={"sequence_id": {"int64_param": 1}}), "leave out: sequence_id"),
        (infer("a", outputs=[{"name": "label", "parameters": {"binary_data": {"bool_param": True}}}]), "is of HTTP"),
    ],
)
def test_what_is_malformed_is_an_invalid_argument(call: Call, body: Any, words: str) -> None:
    error = refusal(call, "ModelInfer", body)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(error.details())
    assert "x-request-id" in dict(error.trailing_metadata() or ())


def test_each_status_has_its_code(call: Call) -> None:
    for method, body in (
        ("ModelInfer", infer("a", model_name="nobody")),
        ("ModelInfer", infer("a", model_version="0")),
        ("ModelReady", message("ModelReadyRequest")(name="nobody")),
        ("ModelMetadata", message("ModelMetadataRequest")(name="mood", version="0")),
    ):
        assert refusal(call, method, body).code() is grpc.StatusCode.NOT_FOUND
    late = refusal(call, "ModelInfer", infer(*["a film"] * 50, parameters={"timeout": {"int64_param": 1}}))
    assert late.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert {CODES[429], CODES[503]} == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}


def test_a_call_wants_a_key_but_for_the_servers_health_and_one_that_has_sent_its_texts_waits(
    bundle_folder: Path,
) -> None:
    key, line = new_key("app")
    metadata = (("authorization", f"Bearer {key}"),)
    settings = Settings(precision="fp32", api_keys=[str(line)], texts_per_second_per_key=0.01, max_texts_per_request=2)
    with calling(Service(Models([Spec("mood", bundle_folder)], settings), settings)) as keyed:
        for method in METHODS:
            body = message(f"{method}Request")(name="mood") if method.startswith("ModelReady") else b""
            if method in ("ServerLive", "ServerReady"):
                assert keyed(method, body)
                continue
            refused = refusal(keyed, method, body, metadata=(("authorization", f"Bearer {key}x"),))
            assert refused.code() is refusal(keyed, method, body).code() is grpc.StatusCode.UNAUTHENTICATED
            assert key not in str(refused)
        assert len(keyed("ModelInfer", infer(*TEXTS), metadata=metadata).outputs) == 6
        refused = refusal(keyed, "ModelInfer", infer("a film"), metadata=metadata)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(refused.trailing_metadata())
        assert 90 <= int(trailing["retry-after"]) <= 100
        assert int(trailing["grpc-retry-pushback-ms"]) == 1000 * int(trailing["retry-after"])


@pytest.mark.parametrize(
    ("timeout_ms", "remaining_s", "expected"),
    [(None, None, None), (500, None, 500), (None, 2.0, 2000), (500, 2.0, 500), (5000, 2.0, 2000), (None, 0.0, 1)],
)
def test_the_sooner_of_two_deadlines_counts(
    timeout_ms: int | None, remaining_s: float | None, expected: int | None
) -> None:
    assert sooner(timeout_ms, remaining_s) == expected
    assert sooner(None, 1e9) == 600_000  # as many ms as a request may ask for


def fields(file: FileDescriptorProto) -> dict[str, set[tuple[Any, ...]]]:
    """The fields of each message, by its path."""
    found: dict[str, set[tuple[Any, ...]]] = {}

    def add(path: str, one: DescriptorProto) -> None:
        found[path] = {(f.name, f.number, f.label, f.type, f.type_name, f.HasField("oneof_index")) for f in one.field}
        for inner in one.nested_type:
            add(f"{path}.{inner.name}", inner)

    for one in file.message_type:
        add(one.name, one)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("module", "requirements"),
    [("tritonclient.grpc.service_pb2", TRITON), ("kserve.protocol.grpc.grpc_predict_v2_pb2", KSERVE)],
)
def test_the_messages_are_those_of_the_clients(module: str, requirements: tuple[str, ...]) -> None:
    file = FileDescriptorProto.FromString(base64.b64decode(calls("client_descriptor", requirements, module)["file"]))
    theirs, ours = fields(file), fields(described())
    common = ours.keys() & theirs.keys()
    assert ours.keys() - common <= {path for path in ours if path.startswith("RepositoryIndex")}  # Triton's alone
    for path in common:
        names = {field[0] for field in theirs[path]}  # KServe's copy of the protocol lacks the youngest parameters
        assert {field for field in ours[path] if field[0] in names} <= theirs[path], path
        assert requirements != TRITON or ours[path] <= theirs[path]
    [service] = [one for one in file.service if f"{file.package}.{one.name}" == SERVICE]
    assert set(METHODS) - {"RepositoryIndex"} <= {method.name for method in service.method}


def test_the_installed_ray_still_has_what_the_ingress_rests_on() -> None:
    from ray.serve._private import default_impl, grpc_util, replica

    assert "default_impl import add_grpc_address" in inspect.getsource(grpc_util.start_grpc_server)
    assert list(inspect.signature(default_impl.add_grpc_address).parameters) == ["grpc_server", "server_address"]
    parameters = inspect.signature(grpc_util.start_grpc_server).parameters
    assert list(parameters) == ["service_handler_factory", "grpc_options", "event_loop", "enable_so_reuseport"]
    assert "await start_grpc_server(\n" in inspect.getsource(replica.Replica)
    assert "DEFAULT_GRPC_SERVER_OPTIONS + (" in inspect.getsource(grpc_util.gRPCGenericServer)


def test_what_ray_is_told_to_import_is_there(tmp_path: Path) -> None:
    from ray._common.utils import import_attr

    from service import grpc_ingress

    told = ray_environment(tmp_path, Settings())["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert import_attr(told) is grpc_ingress.listen_on_loopback
    [function] = grpc_ingress.options(9000)["grpc_servicer_functions"]
    assert import_attr(function) is grpc_ingress.add_to_server


def test_what_ray_imports_in_its_own_processes_keeps_no_metrics() -> None:
    program = "import sys, service.app; sys.exit('service.metrics' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
