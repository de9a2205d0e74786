"""The program of peers/litserve.py; its worker process imports the class from here.

No `from __future__ import annotations`: LitServe reads the type of a request from the signature.
"""

import os
import sys
from typing import Any

import litserve

from peers import MAX_BATCH, WAIT_S
from peers.classifier import Classifier


class Api(litserve.LitAPI):  # type: ignore[misc]
    """POST /predict {"texts": [...]}: a batch is the texts of several requests."""

    def setup(self, device: str) -> None:
        """Load, in the worker."""
        bundle, _, onnx = sys.argv[1:4]
        self.classifier = Classifier(bundle, onnx, len(os.sched_getaffinity(0)))

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        """Texts of one request."""
        texts: list[str] = request["texts"]
        return texts

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        """Requests stay apart."""
        return inputs

    def predict(self, requests: list[list[str]]) -> list[list[str]]:
        """Labels of several requests."""
        return self.classifier.batch(requests)

    def unbatch(self, output: list[list[str]]) -> list[list[str]]:
        """One answer a request."""
        return output

    def encode_response(self, labels: list[str]) -> dict[str, list[str]]:
        """The answer."""
        return {"labels": labels}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S), accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, log_level="warning", generate_client_file=False
    )
