"""Any OpenAI-compatible endpoint on a task's held-out problems: python examples/evaluate_endpoint.py [URL MODEL]

Without a URL, a small server on this machine stands in, which is right two times out of three.
The key, if the server wants one, is read from DUNWU_API_KEY.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from dunwu.eval.passk import pass_at_1
from dunwu.rollout.endpoint import Endpoint
from dunwu.tasks import get_task
from dunwu.tasks.frames import reply_text
from dunwu.types import SamplingParams


def stand_in(task, problems):
    """A server that knows the gold replies, and forgets every third."""
    known = {p.messages[-1].content: task.gold(p) if n % 3 else "I forgot." for n, p in enumerate(problems)}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            message = {"role": "assistant", "content": known[asked]}
            body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    return server


def main(url="", model="stand-in", n=30):
    """Ask, judge, summarise; returns accuracy with its 95% interval."""
    task = get_task("word-problems", frame="chat")
    problems = [task.problem("test", 0, index) for index in range(n)]
    server = None if url else stand_in(task, problems)
    endpoint = Endpoint(url or f"http://127.0.0.1:{server.server_port}", model)
    replies = endpoint.reply([p.messages for p in problems], list(range(n)), SamplingParams(max_tokens=1024))
    verdicts = [task.score(problem, reply_text(reply)) for problem, reply in zip(problems, replies, strict=True)]
    found = pass_at_1([[verdict.rewards["accuracy"] == 1.0] for verdict in verdicts]).as_json()
    print(f"{model}: {found['value']:.2f} ({found['low']:.2f} … {found['high']:.2f}) of {n} problems")
    if server is not None:
        server.shutdown()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:3])
