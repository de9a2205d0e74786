"""Ray Serve with @serve.batch: behind its default proxy, and behind the ingress that Heed itself uses.

The forward pass has a thread of its own, which was worth 40% over asyncio.to_thread.
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from peers import MAX_BATCH, WAIT_S, Peer, Start

if TYPE_CHECKING:
    from ray.serve import Application


def command(ingress: str, start: Start) -> list[str]:
    """The program below."""
    return start.program("ray", ingress)


PEERS = [
    Peer("ray-proxy", partial(command, "proxy")),
    Peer("ray", partial(command, "haproxy")),
    Peer("ray-int8", partial(command, "haproxy"), wants_onnx=True),
]


def application(bundle: str, onnx: str) -> Application:
    """One replica."""
    from ray import serve

    @serve.deployment(max_ongoing_requests=10_000, logging_config={"enable_access_log": False})
    class Classify:
        def __init__(self) -> None:
            from peers.classifier import Classifier

            self._thread = ThreadPoolExecutor(1)
            cores = len(os.sched_getaffinity(0))
            self._classifier = self._thread.submit(Classifier, bundle, onnx, cores).result()

        async def __call__(self, http: Any) -> dict[str, list[str]]:
            body = await http.json()
            return {"labels": await self.classify(body["texts"])}

        @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)  # type: ignore[untyped-decorator]
        async def classify(self, requests: list[list[str]]) -> list[list[str]]:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._classifier.batch, requests)

    return Classify.bind()  # type: ignore[attr-defined]


def serve_on_default_proxy(app: Application, port: int) -> None:
    """Ray Serve as it is out of the box."""
    import ray
    from ray import serve

    from service.launch import stop_on_signal

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app)
    stop_on_signal().wait()
    ray.shutdown()


def main() -> None:
    """Serve."""
    bundle, port, onnx, ingress = sys.argv[1:5]
    if ingress == "proxy":
        serve_on_default_proxy(application(bundle, onnx), int(port))
    else:
        from peers.ingress import serve_application

        serve_application(lambda: application(bundle, onnx), int(port))


if __name__ == "__main__":
    main()
