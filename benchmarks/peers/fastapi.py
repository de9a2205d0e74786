"""FastAPI around a transformers pipeline, the way most services begin: no batching, bf16.

The pipeline runs in the event loop, one request at a time: in FastAPI's thread pool the forward passes fight for
the cores, and half as many requests are answered.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from peers import Peer, Start

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = [Peer("fastapi", lambda start: command(start))]


def command(start: Start) -> list[str]:
    """The program below."""
    return start.program("fastapi")


def application(classify: Callable[[list[str]], list[str]]) -> Any:
    """A route with a pydantic body and answer around what gives a label to each text."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    app = FastAPI()

    class Body(BaseModel):
        texts: list[str]

    class Answer(BaseModel):
        labels: list[str]

    async def answer(body: Body) -> Answer:
        return Answer(labels=classify(body.texts))

    answer.__annotations__ = {"body": Body, "return": Answer}  # FastAPI cannot look up names of a function's inside
    app.post("/classify")(answer)
    return app


def main() -> None:
    """Serve."""
    import torch
    import uvicorn
    from transformers import pipeline

    bundle, port = sys.argv[1:3]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    classify = pipeline("text-classification", bundle, dtype=torch.bfloat16, device="cpu")
    app = application(lambda texts: [result["label"] for result in classify(texts, truncation=True)])
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
