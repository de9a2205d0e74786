"""The service that peers/bentoml.py starts; BentoML wants a class in a module."""

import os

import bentoml

from peers import MAX_BATCH
from peers.classifier import Classifier


@bentoml.service(workers=1, traffic={"timeout": 60})
class Classify:
    """POST /classify {"texts": [...]}: BentoML gathers the texts of several requests in one call."""

    def __init__(self) -> None:
        self._classifier = Classifier(os.environ["PEER_BUNDLE"], os.environ["PEER_ONNX"], len(os.sched_getaffinity(0)))

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    def classify(self, texts: list[str]) -> list[str]:
        """Labels of the texts."""
        return self._classifier(texts)
