"""KServe's clients: URL GRPC_ADDRESS, either may be -. Run by tests/clients.py, in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, address = sys.argv[1:]
LOVELY, DULL = "a lovely film", "the dull town"


def request(*texts: str, is_binary: bool = False, **options: Any) -> InferRequest:
    one = InferInput("text", [len(texts)], "BYTES")
    one.set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=is_binary)
    return InferRequest("mood", [one], **options)


def outputs(response: Any) -> dict[str, Any]:
    """By name, flat."""
    arrays = {output.name: output.as_numpy().flatten().tolist() for output in response.outputs}
    decoded = {
        name: [one.decode() if isinstance(one, bytes) else one for one in values] for name, values in arrays.items()
    }
    return decoded | {"id": response.id}


async def refused(call: Any) -> list[Any]:
    try:
        await call
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        return [error.code().name, error.details(), trailing]
    raise AssertionError("it is not refused")


async def v2() -> dict[str, Any]:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        return {
            "v2 is_server_live": await client.is_server_live(url),
            "v2 is_server_ready": await client.is_server_ready(url),
            "v2 is_model_ready": await client.is_model_ready(url, "mood"),
            "v2 is_model_ready, no such model": await client.is_model_ready(url, "nobody"),
            "v2 infer": outputs(await client.infer(url, request(LOVELY, DULL, request_id="42"), model_name="mood")),
            "v2 infer, binary": outputs(
                await client.infer(
                    url,
                    request(LOVELY, DULL, is_binary=True, parameters={"binary_data_output": True}),
                    model_name="mood",
                )
            ),
            "v2 infer, unknown parameter": await refused(
                client.infer(url, request(LOVELY, parameters={"colour": 1}), model_name="mood")
            ),
        }


async def v1() -> dict[str, Any]:
    body = {"instances": [LOVELY, DULL]}
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        return {
            "v1 is_server_live": await client.is_server_live(url),
            "v1 is_model_ready": await client.is_model_ready(url, "mood"),
            "v1 infer": await client.infer(url, body, model_name="mood"),
            "v1 explain": await client.explain(url, "mood", body),
            "v1 infer, no instances": await refused(client.infer(url, {}, model_name="mood")),
            "v1 infer, no such model": await refused(client.infer(url, body, model_name="nobody")),
        }


async def over_grpc() -> dict[str, Any]:
    async with InferenceGRPCClient(address) as client:
        many = [client.infer(request(*(f"{LOVELY} {n} " * 100 for n in range(1000))), timeout=4) for _ in range(12)]
        return {
            "grpc is_server_live": await client.is_server_live(),
            "grpc is_server_ready": await client.is_server_ready(),
            "grpc is_model_ready": await client.is_model_ready("mood"),
            "grpc is_model_ready, no such model": await refused(client.is_model_ready("nobody")),
            "grpc infer": outputs(await client.infer(request(LOVELY, DULL, request_id="42"))),
            "grpc infer, raw": outputs(await client.infer(request(LOVELY, DULL, is_binary=True))),
            "grpc infer, deadline": await refused(client.infer(request(*[LOVELY] * 1000), timeout=0.001)),
            "grpc infer, overload": [
                [error.code().name, dict(error.trailing_metadata() or ())]
                for error in await asyncio.gather(*many, return_exceptions=True)
                if isinstance(error, grpc.RpcError)
            ],
        }


async def main() -> None:
    found: dict[str, Any] = {}
    if url != "-":
        found |= await v1() | await v2()
    if address != "-":
        found |= await over_grpc()
    print(json.dumps(found))


asyncio.run(main())
