"""An OpenAI-compatible server as a `ChatModel`: /v1/chat/completions over the standard library.

Servers differ, so little is assumed: thinking is read from `reasoning_content`, `reasoning`, `thinking` or the content's
`<think>` block, errors from any of the shapes in use; only roles and contents are sent, since strict servers refuse more.
Not covered: streaming, tools, log-probabilities.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message as Headers
from typing import Any, NamedTuple

from dunwu.types import DunwuError, FinishReason, Message, SamplingParams, UsageError, derive_seed

KEY_VARIABLE = "DUNWU_API_KEY"
RETRIED = (408, 409, 429)
"""Refusals that may pass, besides every 5xx."""
LONGEST_PAUSE = 120.0
"""Seconds; a server that asks to wait longer is an error."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 8.0
LARGEST_SEED = 2**31 - 1
"""Servers keep seeds in 32 signed bits, or in a float."""
_THINKING = ("reasoning_content", "reasoning", "thinking")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Answer(NamedTuple):
    """A reply, and whether it ended by itself."""

    message: Message
    finish_reason: FinishReason


class _Passing(Exception):
    """A failure worth another attempt: what it was, and the seconds the server asks to wait."""

    def __init__(self, what: str, cure: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.what, self.cure, self.wait = what, cure, wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, and turn the POST into a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """Replies of a server.

    Args:
        url: its base (`http://host:8000`, `https://host/v1`) or the whole address of its chat completions.
        model_name: the model the server is asked for.
        api_key_env: environment variable with the key; the key itself is never stored, shown or logged.
        concurrency: requests at once.
        timeout: seconds without a byte before a request counts as lost.
        attempts: tries of one request; refusals that may pass are tried again after a pause.
        extra: further fields of the request's body, for servers that want them.
        sleep: how to pause.

    Raises:
        UsageError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        model_name: str,
        api_key_env: str = KEY_VARIABLE,
        concurrency: int = 8,
        timeout: float = 600.0,
        attempts: int = 5,
        extra: Mapping[str, Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.model_name, self.name = completions_url(url), model_name, f"{url}#{model_name}"
        self.api_key_env, self.concurrency, self.timeout = api_key_env, concurrency, timeout
        self.attempts, self.extra, self._sleep = attempts, dict(extra or {}), sleep
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urllib.parse.urlsplit(self.url).hostname in _LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def reply(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Message]:
        """One reply to each conversation, in order.

        Raises:
            DunwuError: the server cannot be reached, refuses, or answers something that is no completion.
        """
        return [answer.message for answer in self.complete(conversations, seeds, params)]

    def complete(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Answer]:
        """The replies, and whether each ended by itself."""
        bodies = [self._body(talk, seed, params) for talk, seed in zip(conversations, seeds, strict=True)]
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        try:
            return list(pool.map(self._ask, bodies))
        finally:  # after an error or Ctrl-C the requests that wait are not sent any more
            pool.shutdown(wait=False, cancel_futures=True)

    def _body(self, conversation: Sequence[Message], seed: int, params: SamplingParams) -> bytes:
        fields: dict[str, Any] = {
            "model": self.model_name,
            "messages": [{"role": message.role, "content": message.content} for message in conversation],
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "seed": seed % LARGEST_SEED,
            "stream": False,
        }
        if params.top_p < 1:
            fields["top_p"] = params.top_p
        if params.top_k > 0:
            fields["top_k"] = params.top_k
        return json.dumps(fields | self.extra).encode()

    def _ask(self, body: bytes) -> Answer:
        for attempt in range(self.attempts):
            try:
                return read_answer(self._post(body), self.url)
            except _Passing as failure:
                if attempt + 1 == self.attempts or (failure.wait or 0) > LONGEST_PAUSE:
                    times = f" ({attempt + 1} times)" if attempt else ""
                    raise DunwuError(f"{self.url}: {failure.what}{times}", failure.cure) from failure
                backoff = min(LAST_BACKOFF, FIRST_BACKOFF * 2**attempt)
                jitter = 0.75 + 0.25 * (derive_seed("backoff", body, attempt) / 2**63)
                self._sleep(backoff * jitter if failure.wait is None else failure.wait)
        raise UsageError(f"attempts is {self.attempts}", "use 1 or more")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "dunwu"}
        key = os.environ.get(self.api_key_env, "")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error_text(error.read(4096))
            raise self._refusal(error.code, said.replace(key, "***") if key else said, error.headers) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from None

    def _refusal(self, status: int, said: str, headers: Headers) -> Exception:
        what = f"status {status}" + (f", {said}" if said else "")
        if status in RETRIED or status >= 500:
            wait = retry_after(headers)
            cure = "ask for less at once (concurrency), or later" if status == 429 else "look at the server's log"
            return _Passing(what, cure, wait)
        if status in (401, 403):
            there = "holds no key" if not os.environ.get(self.api_key_env) else "holds a key the server does not accept"
            return DunwuError(f"{self.url}: {what}", f"the environment variable {self.api_key_env} {there}")
        if status == 404:
            return DunwuError(f"{self.url}: {what}", f"check the address, and the model name {self.model_name!r}")
        if 300 <= status < 400:
            return DunwuError(f"{self.url}: {what}", f"it has moved; use {headers.get('Location', 'its new address')}")
        return DunwuError(f"{self.url}: {what}", "the server does not take this request")

    def _unreachable(self, error: Exception) -> Exception:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, ValueError):  # a key or an address that no header or request line can hold
            what = f"{self.url}: the request cannot be sent"
            return DunwuError(what, f"check the address, and {self.api_key_env} for line ends")
        if isinstance(reason, ConnectionRefusedError):
            return _Passing("connection refused", "is the server running?")
        if isinstance(reason, TimeoutError):
            return _Passing(f"no answer within {self.timeout:g} s", "is the server overloaded? raise the timeout")
        words = str(reason) or type(reason).__name__
        return _Passing(words, "check the address and the network")


def completions_url(url: str) -> str:
    """The address of the chat completions below a base URL; `/v1` is added to a bare host only.

    Raises:
        UsageError: not an http(s) URL.

    Example:
        >>> completions_url("http://localhost:8000"), completions_url("https://host/api/v3/")
        ('http://localhost:8000/v1/chat/completions', 'https://host/api/v3/chat/completions')
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url} is no http address", "give e.g. http://localhost:8000/v1")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return urllib.parse.urlunsplit(parts._replace(path=path))


def is_url(name: str) -> bool:
    """Whether a model is named by an address."""
    return name.startswith(("http://", "https://"))


def read_answer(body: bytes, url: str) -> Answer:
    """The message of a completion's body.

    Raises:
        DunwuError: an error with status 200, or something that is no completion.
    """
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        raise DunwuError(f"{url}: the answer is not JSON: {error_text(body)}", "is this a chat server?") from None
    choices = record.get("choices") if isinstance(record, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    fields = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(fields, dict):
        raise DunwuError(f"{url}: the answer holds no completion: {error_text(body)}", "is this a chat server?")
    content = fields.get("content")
    content = content if isinstance(content, str) else ""
    thinking = next((text for name in _THINKING if isinstance(text := fields.get(name), str) and text), None)
    if thinking is None:
        thinking, content = _split_thinking(content)
    finish: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
    return Answer(Message("assistant", content, thinking), finish)


def _split_thinking(content: str) -> tuple[str | None, str]:
    """Thinking in the content; its opening tag is missing where the server's prompt had it, its end where it was cut."""
    opened = content.lstrip().startswith("<think>")
    before, closed, after = content.partition("</think>")
    if not opened and not closed:
        return None, content
    return before.lstrip().removeprefix("<think>").strip("\n"), after.lstrip("\n") if closed else ""


def error_text(body: bytes) -> str:
    """What an error's body says, in one line: `error.message`, `error`, `message`, `detail`, or the text itself."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    line = " ".join((said if isinstance(said, str) else json.dumps(said)).split())
    return line if len(line) <= 200 else line[:199] + "…"


def retry_after(headers: Headers) -> float | None:
    """Seconds the server asks to wait, from `retry-after-ms` or `Retry-After` (seconds or a date); None if it does not say."""
    try:
        if headers.get("retry-after-ms"):
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        asked = headers.get("Retry-After", "")
        if asked.strip().replace(".", "", 1).isdigit():
            return float(asked)
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time()) if asked else None
    except (ValueError, TypeError):
        return None
