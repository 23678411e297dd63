"""A chat server on this machine that speaks OpenAI's protocol, and fails in the ways that servers do."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler"], None]
Faults = Sequence[Fault] | Callable[[dict], Fault | None]


def completion(text, finish="stop") -> bytes:
    """3 tokens in, 2 out."""
    return json.dumps(
        {
            "id": "c", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }
    ).encode()


# --- faults: how one request is answered -------------------------------------------------------------------------


def says(text, finish="stop") -> Fault:
    return lambda handler: handler.reply(200, completion(text, finish))


def status(number, headers=None, **error) -> Fault:
    return lambda handler: handler.reply(number, json.dumps({"error": {"message": "no", **error}}).encode(), headers)


def body(raw: bytes, kind="application/json") -> Fault:
    return lambda handler: handler.reply(200, raw, {"Content-Type": kind})


def hang(seconds) -> Fault:
    return lambda handler: time.sleep(seconds)


def drop(handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def truncate(handler) -> None:
    """Half of the bytes that were announced."""
    whole = completion("cut")
    handler.reply(200, whole[: len(whole) // 2], {"Content-Length": str(len(whole)), "Connection": "close"})


def echo_headers(code) -> Fault:
    """A proxy that shows what it was sent."""
    return lambda handler: handler.reply(code, json.dumps({"error": {"message": str(handler.headers)}}).encode())


# --- server ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go separately, and would wait for each other

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.close_connection = True  # unless a whole reply is sent
        self.server.owner.take(self, request)  # type: ignore[attr-defined]

    def reply(self, code, raw, headers=None) -> None:
        self.send_response(code)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(raw)),
                  "Connection": "keep-alive", **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_) -> None:
        pass


class ChatServer:
    """``answer(request) -> text``; ``faults`` are used up first, one per request, in the order of arrival; or a
    function of the request says which, None for an answer."""

    def __init__(self, answer: Callable[[dict], str], faults: Faults = (), delay: float = 0.0):
        self.answer, self.delay = answer, delay
        self.faults = [] if callable(faults) else list(faults)
        self.fault_of = faults if callable(faults) else lambda _: self.faults.pop(0) if self.faults else None
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.headers: list[dict] = []
        self.paths: list[str] = []
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.owner = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def take(self, handler: Handler, request: dict) -> None:
        with self.lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.paths.append(handler.path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.fault_of(request)
        try:
            if fault:
                fault(handler)
            else:
                time.sleep(self.delay)
                handler.reply(200, completion(self.answer(request)))
        except (BrokenPipeError, ConnectionResetError):  # the client was killed, or has had enough
            pass
        finally:
            with self.lock:
                self.at_once -= 1

    def asked(self) -> Counter:
        """How often each last message came."""
        return Counter(request["messages"][-1]["content"] for request in self.requests)


def surroundings(monkeypatch) -> None:
    """Short delays of the client, and nothing of the machine's own settings."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("datamap.thoughts.chat_pace.FIRST_PAUSE", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS",
                 "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy",
                 "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def chat_server(answer: Callable[[dict], str], faults: Faults = (), delay: float = 0.0):
    server = ChatServer(answer, faults, delay)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
