"""The Python client of a Heed service: needs httpx alone, neither torch nor Ray.

import heed

with heed.Client("http://127.0.0.1:8000") as client:
    for result in client.classify(["a gorgeous, witty movie"]):
        print(result.label, result.score)
"""

from heed.client import AsyncClient, Client
from heed.errors import HeedError
from heed.requests import Options
from heed.results import Explanation, Kept, LabelScore, Result, TextError, TokenScore, Window

__all__ = [
    "AsyncClient",
    "Client",
    "Explanation",
    "HeedError",
    "Kept",
    "LabelScore",
    "Options",
    "Result",
    "TextError",
    "TokenScore",
    "Window",
]
