"""What stands before every request: whose it is, and how large it may be. ASGI, no framework."""

import hmac
import json
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

COOKIE = "ospnext_token"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
# The page may load and ask nothing but what comes from here.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; frame-ancestors 'none'")
# Gradio's own ways to put files on this machine, take them from it, or make it ask others.
CLOSED = ("upload", "upload_progress", "file", "proxy", "stream", "deep_link", "component_server", "vibe-code")

# Of a body that is refused; whoever sends more is cut off.
DRAINED_BYTES = 2**25

# Of a message that repeats what the client sent.
MESSAGE_CHARACTERS = 500


def error_body(message: str, code: str) -> dict:
    """An error in the form of OpenAI's API; of a long message the beginning, half a character pair as an escape."""
    message = message[:MESSAGE_CHARACTERS].encode(errors="backslashreplace").decode()
    return {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}}


class Guard:
    """An ASGI application that lets through to another what it may see.

    Refused in one line: another Host than the loopback's where only that is served, and a page of another origin
    (another site's page in the user's browser could ask otherwise); requests without the token, where there is one, as
    `Authorization: Bearer`, as a cookie, or once as ?token=, which sets the cookie; bodies larger than the limit, of
    which nothing is kept; Gradio's uploads and files, which nothing here needs.

    Args:
        app: what to protect. section: ServeSection.
    """

    def __init__(self, app, section):
        self._app, self._section = app, section

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal:
            await self._refuse(scope, receive, send, *refusal)
            return
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if self._section.token and given and scope.get("method") == "GET" and self._is_token(given):
            await _answer(send, 303, b"", [(b"location", scope["path"].encode("latin-1", "replace")),
                                           (b"set-cookie", f"{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/"
                                                           .encode())])
            return
        if scope["path"].strip("/").startswith("gradio_api/"):
            send = _without_server_errors(send)
        await self._app(scope, _Bounded(receive, self._section.body_bytes), _with_policy(send))

    def _refusal(self, scope, headers):
        host, section = headers.get("host", ""), self._section
        if section.is_loopback and _name_of(host) not in LOOPBACK_NAMES:
            return 403, f"the host {host[:60]!r} is not served here; use 127.0.0.1 or localhost", "host"
        origin = headers.get("origin")
        if origin is not None and _place_of(origin) != host:
            return 403, "a page of another site may not ask this server", "origin"
        if section.token is not None and not self._knows_token(scope, headers):
            return 401, "give the server's token: Authorization: Bearer TOKEN, or the page with ?token=TOKEN", "token"
        parts = scope["path"].strip("/").split("/")
        if parts[0] == "gradio_api" and len(parts) > 1 and parts[1].partition("=")[0] in CLOSED:
            return 404, "there is no such thing here", "not_found"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > section.body_bytes:
            return 413, f"the body is larger than {section.body_bytes} bytes", "too_large"
        return None

    def _knows_token(self, scope, headers):
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = [value] if kind.lower() == "bearer" else []
        given += parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])[:1]
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = {}
        given += [cookies[COOKIE].value] if COOKIE in cookies else []
        return any(self._is_token(text) for text in given)

    def _is_token(self, text):
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._section.token.encode())

    @staticmethod
    async def _refuse(scope, receive, send, status, message, code):
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await _let_go(receive)
        extra = [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await _answer(send, status, json.dumps(error_body(message, code)).encode(), extra)


async def _let_go(receive):
    """Takes the body of a refused request and keeps nothing: a connection that is closed on what nobody read is reset,
    and the client may never see the answer."""
    left = DRAINED_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


class TooLarge(Exception):
    """A body without a length, or with a wrong one, that goes on beyond the limit."""


class _Bounded:
    def __init__(self, receive, limit):
        self._receive, self._left, self._limit = receive, limit, limit

    async def __call__(self):
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise TooLarge(f"the body is larger than {self._limit} bytes")
        return message


def _with_policy(send):
    async def sends(message):
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode()),
                                  (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
        await send(message)
    return sends


def _without_server_errors(send):
    """Gradio calls it a server's error, in many lines, where what a client sent to the page's events cannot be."""
    refused = False

    async def sends(message):
        nonlocal refused
        if message["type"] == "http.response.start" and message["status"] >= 500:
            refused = True
            body = error_body("this is not what the page sends", "invalid_value")
            await _answer(send, 400, json.dumps(body).encode())
        elif not refused:
            await send(message)
    return sends


async def _answer(send, status, body, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"), *headers]})
    await send({"type": "http.response.body", "body": body})


def _place_of(origin):
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name_of(host):
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
