"""What /openapi.json cannot express, told to schemathesis; tests/schemathesis.toml names this file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import schemathesis
from schemathesis.core.failures import ServerError
from schemathesis.openapi.checks import RejectedPositiveData

if TYPE_CHECKING:
    from schemathesis import Case, HookContext, Response
    from schemathesis.core.failures import Failure

JSON_LENGTH, BINARY = "Inference-Header-Content-Length", "application/octet-stream"

# Words of a refusal, and why a request as documented may meet it.
REFUSALS = {
    "the model has no such label": "labels are those of a model, which the request names",
    "of this model's labels: send": "whether a text has one label or any number is the model's too",
    "is not in the answer to this request": "outputs are those of a model, and of what the request asks for",
    "it is another than in the path": "a field that repeats what the path says",
    "different numbers of texts": "two lists of one length",
    "the model reads": "tokens are counted by a model's tokenizer",
}


@schemathesis.hook.apply_to(path_regex="/infer$")  # type: ignore[attr-defined,untyped-decorator]
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """What is sent as documented agrees with itself: a tensor has as many texts as its shape says, JSON its length."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and case.media_type != BINARY:
        case.headers.pop(JSON_LENGTH, None)
        body: Any = case.body
        for tensor in body["inputs"]:
            tensor["shape"] = [len(tensor["data"]), *tensor["shape"][1:]]
    return case


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Whether it is one. A deadline of the request's own may pass; a request of bytes is no tensor by chance."""
    if isinstance(failure, ServerError):
        return not (response.status_code == 504 and "timeout" in str(case.body))
    if isinstance(failure, RejectedPositiveData):
        return case.media_type != BINARY and not any(words in response.text for words in REFUSALS)
    return True
