"""heed.Client and heed.AsyncClient: the same calls, waited for in two ways. What they decide is in requests.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING

import httpx

from heed.errors import HeedError
from heed.requests import (
    REQUEST_S,
    Batch,
    Correction,
    Deadline,
    Limits,
    answer_of,
    batches,
    call_deadline,
    checked,
    parsed,
    request,
    retry_in,
)
from heed.results import Kept, parse_results

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from heed.requests import Options, Text
    from heed.results import Result

ANY = Limits(1, 0)  # one text is one request, whatever the limits


class Client:
    """A Heed service, asked one request at a time; safe to share between threads."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(api_key))
        self._limits: Limits | None = None
        self._was_reached = False

    def classify(self, texts: Sequence[Text], **options: Unpack[Options]) -> list[Result]:
        """An answer to each text, in order; a long list is sent in requests that the service takes.

        A refusal that passes (429, 503) is sent again when the service says so, and so is what a service that answered
        before gave no answer to, if the deadline allows: that of the call (timeout_ms), or 60 s for each request.
        Raises HeedError; a text that failed alone has its error in its place.
        """
        whole = call_deadline(options)
        limits = self._limits_of(whole or Deadline(REQUEST_S)) if len(checked(texts)) > 1 else ANY
        found: list[Result] = []
        for batch in batches(texts, options, limits):
            deadline = whole or Deadline(REQUEST_S)
            with _placed(batch):
                found += parsed(self._send(deadline, batch), parse_results)
        return found

    def feedback(
        self,
        request_id: str,
        index: int,
        *,
        label: str | None = None,
        labels: Sequence[str] | None = None,
        text: str | None = None,
        text_pair: str | None = None,
    ) -> Kept:
        """Give an answered text, a Result's request_id and index, its right label; labels of a multi-label model.

        The service keeps the label for retraining, with the text if it is sent here or if it keeps texts itself. A
        later label for the same text replaces it, so that a refusal that passes is sent again. Raises HeedError.
        """
        correction = Correction(request_id, index, label, labels, text, text_pair)
        return parsed(self._send(Deadline(REQUEST_S), correction), Kept.parse)

    def _limits_of(self, deadline: Deadline) -> Limits:
        """Asked once."""
        if self._limits is None:
            self._limits = parsed(self._send(deadline), Limits.parse)
        return self._limits

    def _send(self, deadline: Deadline, asked: Batch | Correction | None = None) -> httpx.Response:
        """The answer, or the refusal that does not pass in time."""
        for attempt in itertools.count():
            outcome = self._once(deadline, asked)
            wait_s = retry_in(outcome, attempt, deadline, was_reached=self._was_reached)
            if wait_s is None:
                break
            time.sleep(wait_s)
        return answer_of(outcome, self._http.base_url)

    def _once(self, deadline: Deadline, asked: Batch | Correction | None) -> httpx.Response | httpx.TransportError:
        try:
            response = self._http.request(**request(asked, deadline))
        except httpx.TransportError as error:
            return error
        self._was_reached = True
        return response

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """A Heed service, asked by asyncio; `concurrency` requests of one long list are under way at a time."""

    def __init__(self, url: str, api_key: str | None = None, *, concurrency: int = 4) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1, not: {concurrency}")
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key))
        self._limits: Limits | None = None
        self._was_reached = False
        self._concurrency = concurrency

    async def classify(self, texts: Sequence[Text], **options: Unpack[Options]) -> list[Result]:
        """As Client.classify(); the first request that fails cancels the others."""
        whole = call_deadline(options)
        limits = await self._limits_of(whole or Deadline(REQUEST_S)) if len(checked(texts)) > 1 else ANY
        slots = asyncio.Semaphore(self._concurrency)

        async def answer(batch: Batch) -> list[Result]:
            async with slots:
                with _placed(batch):
                    return parsed(await self._send(whole or Deadline(REQUEST_S), batch), parse_results)

        tasks = [asyncio.create_task(answer(batch)) for batch in batches(texts, options, limits)]
        try:
            return [result for results in await asyncio.gather(*tasks) for result in results]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def feedback(
        self,
        request_id: str,
        index: int,
        *,
        label: str | None = None,
        labels: Sequence[str] | None = None,
        text: str | None = None,
        text_pair: str | None = None,
    ) -> Kept:
        """As Client.feedback()."""
        correction = Correction(request_id, index, label, labels, text, text_pair)
        return parsed(await self._send(Deadline(REQUEST_S), correction), Kept.parse)

    async def _limits_of(self, deadline: Deadline) -> Limits:
        """Asked once."""
        if self._limits is None:
            self._limits = parsed(await self._send(deadline), Limits.parse)
        return self._limits

    async def _send(self, deadline: Deadline, asked: Batch | Correction | None = None) -> httpx.Response:
        for attempt in itertools.count():
            outcome = await self._once(deadline, asked)
            wait_s = retry_in(outcome, attempt, deadline, was_reached=self._was_reached)
            if wait_s is None:
                break
            await asyncio.sleep(wait_s)
        return answer_of(outcome, self._http.base_url)

    async def _once(
        self, deadline: Deadline, asked: Batch | Correction | None
    ) -> httpx.Response | httpx.TransportError:
        try:
            response = await self._http.request(**request(asked, deadline))
        except httpx.TransportError as error:
            return error
        self._was_reached = True
        return response

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()


def _headers(api_key: str | None) -> dict[str, str]:
    key = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"content-type": "application/json", **key}


@contextlib.contextmanager
def _placed(batch: Batch) -> Iterator[None]:
    """An error that names a text counts from the start of its request: it is noted where that is in the call."""
    try:
        yield
    except HeedError as error:
        if batch.start:
            error.add_note(f"texts[0] of this request is texts[{batch.start}] of the call")
        raise
