"""The endpoint against a real local server that misbehaves in every way we know of, and the local model beside it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from dunwu.data.tokenizer import train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.endpoint import KEY_VARIABLE, Endpoint, completions_url, read_answer, retry_after
from dunwu.rollout.engine import Engine
from dunwu.rollout.local import LocalChat
from dunwu.types import DunwuError, Message, SamplingParams, UsageError

TALK = [
    Message("system", "Be brief."),
    Message("user", "3*8?"),
    Message("assistant", "24", "times"),
    Message("user", "你好"),
]
PARAMS = SamplingParams(max_tokens=32, temperature=0.7, top_p=0.9, top_k=5)
Answer = tuple[int, dict[str, str], Any]


class Server:
    """Answers each request by a function of (its number, its fields) → (status, headers, body)."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.busy = self.busiest = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append(fields)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                status, headers, body = answer(number, fields)
                with lock:
                    server.busy -= 1
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client may have given up
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """The test's output is no server log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int, dict[str, Any]], Answer]], Server]]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a local server is never asked through a proxy
    opened: list[Server] = []

    def start(answer: Callable[[int, dict[str, Any]], Answer]) -> Server:
        opened.append(Server(answer))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def completion(content: Any, finish: str = "stop", **more: Any) -> Answer:
    return (
        200,
        {},
        {"choices": [{"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}]},
    )


def endpoint(server: Server, pauses: list[float] | None = None, **more: Any) -> Endpoint:
    return Endpoint(server.url, "r1", sleep=(pauses if pauses is not None else []).append, **more)


def test_a_request_carries_what_was_asked_and_nothing_else(serve: Any) -> None:
    server = serve(lambda number, fields: completion("你好！"))
    assert endpoint(server).reply([TALK], [2**62 + 5], PARAMS) == [Message("assistant", "你好！")]
    sent = server.requests[0]
    seed = sent.pop("seed")
    assert 0 <= seed < 2**31
    assert sent == {
        "model": "r1",
        "messages": [{"role": message.role, "content": message.content} for message in TALK],
        "max_tokens": 32,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "stream": False,
    }
    assert server.paths == ["/v1/chat/completions"] and "Authorization" not in server.headers[0]
    endpoint(server, extra={"thinking": False}).reply([TALK], [2**62 + 6], SamplingParams())
    assert "top_p" not in server.requests[1] and "top_k" not in server.requests[1]
    assert server.requests[1]["thinking"] is False and server.requests[1]["seed"] != seed


def test_replies_keep_their_order_whatever_comes_first(serve: Any) -> None:
    def slow(number: int, fields: dict[str, Any]) -> Answer:
        place = int(fields["messages"][0]["content"])
        time.sleep(0.02 * (place % 3))
        return completion(f"reply {place}")

    server = serve(slow)
    talks = [[Message("user", str(place))] for place in range(24)]
    replies = endpoint(server, concurrency=4).reply(talks, list(range(24)), PARAMS)
    assert [reply.content for reply in replies] == [f"reply {place}" for place in range(24)]
    assert 1 < server.busiest <= 4


@pytest.mark.parametrize(
    ("fields", "content", "thinking"),
    [
        ({"content": "24", "reasoning_content": "3*8"}, "24", "3*8"),
        ({"content": "24", "reasoning": "3*8"}, "24", "3*8"),
        ({"content": "24", "thinking": "3*8"}, "24", "3*8"),
        ({"content": "24", "reasoning_content": None}, "24", None),
        ({"content": "24", "reasoning_content": ""}, "24", None),
        ({"content": "<think>3*8</think>\n24"}, "24", "3*8"),
        ({"content": "\n<think>\n3*8\n</think>\n\n24"}, "24", "3*8"),
        ({"content": "3*8</think>24"}, "24", "3*8"),
        ({"content": "<think>3*8 and"}, "", "3*8 and"),
        ({"content": "<think></think>24"}, "24", ""),
        ({"content": None}, "", None),
        ({}, "", None),
    ],
)
def test_thinking_is_found_wherever_it_is(fields: dict[str, Any], content: str, thinking: str | None) -> None:
    answer = read_answer(json.dumps({"choices": [{"message": fields}]}).encode(), "url")
    assert answer.message == Message("assistant", content, thinking)


def test_what_was_cut_off_says_so(serve: Any) -> None:
    server = serve(lambda number, fields: completion("and then", "length"))
    assert endpoint(server).complete([TALK], [1], PARAMS)[0].finish_reason == "length"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(serve: Any, status: int) -> None:
    server = serve(lambda number, fields: (status, {}, b"busy") if number < 3 else completion("done"))
    pauses: list[float] = []
    assert endpoint(server, pauses).reply([TALK], [1], PARAMS)[0].content == "done"
    assert len(server.requests) == 4 and all(request == server.requests[0] for request in server.requests)
    assert [0.75 * at <= pause <= at for pause, at in zip(pauses, (0.5, 1.0, 2.0), strict=True)] == [True] * 3


def test_the_server_says_how_long_to_wait(serve: Any) -> None:
    headers = [{"Retry-After": "7"}, {"retry-after-ms": "1500"}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}]
    server = serve(lambda n, fields: (429, headers[n], b"{}") if n < 3 else completion("done"))
    pauses: list[float] = []
    endpoint(server, pauses).reply([TALK], [1], PARAMS)
    assert pauses == [7.0, 1.5, 0.0]
    assert retry_after({}) is None and retry_after({"Retry-After": "soon"}) is None  # type: ignore[arg-type]


def test_a_wait_too_long_is_an_error(serve: Any) -> None:
    server = serve(lambda number, fields: (429, {"Retry-After": "3600"}, {"error": {"message": "daily quota"}}))
    with pytest.raises(DunwuError, match="status 429, daily quota") as caught:
        endpoint(server).reply([TALK], [1], PARAMS)
    assert len(server.requests) == 1 and "later" in caught.value.cure


@pytest.mark.parametrize(
    ("status", "body", "said", "cure"),
    [
        (400, {"error": {"message": "unknown\nfield", "code": "x"}}, "status 400, unknown field", "does not take"),
        (400, {"code": 20012, "message": "no such model", "data": None}, "no such model", "does not take"),
        (400, {"error": "model missing"}, "model missing", "does not take"),
        (402, {"detail": "no money"}, "status 402, no money", "does not take"),
        (404, b"<html>\n<h1>Not found</h1></html>", "status 404, <html> <h1>Not found", "model name 'r1'"),
        (401, {"error": {"message": "no key"}}, "status 401, no key", f"{KEY_VARIABLE} holds no key"),
        (500, b"x" * 1000, "status 500, " + "x" * 199 + "… (2 times)", "server's log"),
    ],
)
def test_refusals_are_one_line(serve: Any, status: int, body: Any, said: str, cure: str) -> None:
    server = serve(lambda number, fields: (status, {}, body))
    with pytest.raises(DunwuError) as caught:
        endpoint(server, attempts=2).reply([TALK], [1], PARAMS)
    text = str(caught.value)
    assert said in text and cure in caught.value.cure and server.url in text and "\n" not in text
    assert len(server.requests) == (2 if status >= 500 else 1)


def test_the_key_goes_to_the_server_only(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    body = {"error": {"message": "wrong key sk-very-secret"}}
    server = serve(lambda number, fields: (401, {}, body))
    asked = endpoint(server, api_key_env="MY_KEY")
    with pytest.raises(DunwuError) as caught:
        asked.reply([TALK], [1], PARAMS)
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "secret" not in str(caught.value) and "***" in str(caught.value) and "MY_KEY" in caught.value.cure
    assert "secret" not in repr(vars(asked))
    monkeypatch.setenv("MY_KEY", "line\nend")
    with pytest.raises(DunwuError, match="cannot be sent") as caught:
        asked.reply([TALK], [1], PARAMS)
    assert "line\nend" not in str(caught.value)


def test_a_redirect_is_not_followed(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-very-secret")
    elsewhere = serve(lambda number, fields: completion("stolen"))
    server = serve(lambda number, fields: (307, {"Location": elsewhere.url + "/v1"}, b""))
    with pytest.raises(DunwuError) as caught:
        endpoint(server).reply([TALK], [1], PARAMS)
    assert elsewhere.requests == [] and elsewhere.url in caught.value.cure


@pytest.mark.parametrize(
    "body",
    [b"<html>hello</html>", b"[]", b"null", {"choices": []}, {"choices": [None]}, {"error": {"message": "full"}}],
)
def test_what_is_no_completion_is_an_error(serve: Any, body: Any) -> None:
    server = serve(lambda number, fields: (200, {}, body))
    with pytest.raises(DunwuError, match="answer"):
        endpoint(server).reply([TALK], [1], PARAMS)


def test_nobody_there(serve: Any) -> None:
    server = serve(lambda number, fields: completion("hello"))
    gone = endpoint(server, attempts=3)
    server.close()
    with pytest.raises(DunwuError, match=r"connection refused \(3 times\)") as caught:
        gone.reply([TALK], [1], PARAMS)
    assert caught.value.cure == "is the server running?"


def test_a_server_that_hangs_is_given_up(serve: Any) -> None:
    def hang(number: int, fields: dict[str, Any]) -> Answer:
        time.sleep(0.5)
        return completion("late")

    with pytest.raises(DunwuError, match=r"no answer within 0.1 s"):
        endpoint(serve(hang), attempts=1, timeout=0.1).reply([TALK], [1], PARAMS)


def test_one_error_stops_the_requests_that_wait(serve: Any) -> None:
    server = serve(lambda number, fields: (400, {}, b"no"))
    with pytest.raises(DunwuError):
        endpoint(server, concurrency=2).reply([TALK] * 200, list(range(200)), PARAMS)
    assert len(server.requests) < 100


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://", "ftp://host/v1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError):
        Endpoint(url, "r1")


def test_addresses_are_free_text() -> None:
    assert completions_url("https://host/v1/chat/completions") == "https://host/v1/chat/completions"
    assert (
        completions_url("https://host/maas/deepseek-r1/nvidia")
        == "https://host/maas/deepseek-r1/nvidia/chat/completions"
    )


# ---- the local model


def test_a_local_model_replies_in_order_and_to_each_alone() -> None:
    tokenizer = train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=2, initializer_range=0.3
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    chat = LocalChat(Engine(model, tokenizer), tokenizer, "tiny")
    params = SamplingParams(max_tokens=12)
    talks = [[Message("user", "3+4=7, " * length)] for length in (3, 1, 5, 2)]
    together = chat.reply(talks, [5, 6, 7, 8], params)
    alone = [chat.reply([talk], [seed], params)[0] for talk, seed in zip(talks, (5, 6, 7, 8), strict=True)]
    assert together == alone and len({reply.content for reply in together}) == 4
    assert {reply.role for reply in together} == {"assistant"}
    whole = chat.complete(talks, [5, 6, 7, 8], params)
    assert [completion.text for completion in whole] == [reply.content for reply in together]
    assert chat.reply([], [], params) == []
