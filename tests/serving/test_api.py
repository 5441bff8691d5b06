"""The API over HTTP: OpenAI's own client, hostile requests, many clients. The worker pretends."""

import json
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

pytest.importorskip("gradio", reason="serve's packages are not installed (extra app)")
httpx = pytest.importorskip("httpx")

from tests.support.servers import served, tiny_config  # noqa: E402

pytestmark = pytest.mark.framework
MP4 = b"\0\0\0\x18ftypisom" + bytes(range(256)) * 40


def pretend(desk, job):
    for step in range(job.settings["steps"]):
        desk.step(step + 1)
        if desk.is_stopped(job.id):
            break
    desk.path(job.id).write_bytes(MP4)
    desk.finish(job.id)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Base address of a server whose jobs are made at once."""
    folder = tmp_path_factory.mktemp("served")
    config = tiny_config(folder, port=0, keep=500)
    with served(config, folder, pretend) as (address, _):
        yield address


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_openais_own_client(server):
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    video = client.videos.create(prompt="a bright 3", size="128x128", seconds="2", extra_body={"steps": 3, "seed": 5})
    assert video.status in ("queued", "in_progress", "completed")
    deadline = time.monotonic() + 30
    while video.status != "completed":
        assert time.monotonic() < deadline
        video = client.videos.retrieve(video.id)
    assert (video.progress, video.size, video.seconds, video.prompt) == (100, "128x128", "2.125", "a bright 3")
    assert client.videos.download_content(video.id).read() == MP4
    assert [entry.id for entry in client.videos.list(limit=1)][0] == video.id
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.BadRequestError, match="size is '1x1'; it must be one of 128x128"):
        client.videos.create(prompt="a", size="1x1")


@pytest.mark.parametrize(("method", "path", "options", "status", "words"), [
    ("POST", "/v1/videos", {"content": b"{"}, 400, "the body is not JSON"),
    ("POST", "/v1/videos", {"content": b"\xff\xfe"}, 400, "the body is not JSON"),
    ("POST", "/v1/videos", {"content": b"[" * 30000}, 400, ""),
    ("POST", "/v1/videos", {"content": b"[]"}, 400, "the body must be an object"),
    ("POST", "/v1/videos", {"content": b'{"prompt": "a", "guidance": NaN}'}, 400, "guidance: the number nan"),
    ("POST", "/v1/videos", {"content": b'{"prompt": "\\ud800"}'}, 400, "characters that are none"),
    ("POST", "/v1/videos", {"content": b'{"prompt": "a", "\\ud800": 1}'}, 400, "unknown key"),
    ("POST", "/v1/videos", {"json": {"prompt": "a", "k" * 60000: 1}}, 400, "kkk"),
    ("POST", "/v1/videos", {"json": {"prompt": {"a": 1}}}, 400, "prompt: a section (a) is not a text"),
    ("POST", "/v1/videos", {"json": {"prompt": "a", "size": "-8x-8"}}, 400, "size is '-8x-8'"),
    ("POST", "/v1/videos", {"json": {"prompt": "a", "output": "/etc/passwd"}}, 400, "unknown key 'output'"),
    ("POST", "/v1/videos", {"json": {"prompt": "a", "adapter": "/etc"}}, 400, "adapter is '/etc'"),
    ("POST", "/v1/videos", {"content": b"a" * 10_000_000}, 413, "larger than 65536 bytes"),
    ("POST", "/v1/videos", {"data": {"prompt": "a"}, "files": {"input_reference": b"x"}}, 400, "form cannot be read"),
    ("POST", "/v1/videos", {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "form"),
    ("POST", "/v1/videos", {"json": {"prompt": "a"}, "headers": {"Origin": "http://other.org"}}, 403, "another site"),
    ("POST", "/v1/videos", {"json": {"prompt": "a"}, "headers": {"Origin": "http://["}}, 403, "another site"),
    ("GET", "/v1/videos", {"headers": {"Host": "other.org"}}, 403, "the host 'other.org' is not served"),
    ("GET", "/v1/videos?limit=-1", {}, 400, "limit must be from 1"),
    ("GET", "/v1/videos?after=video_none", {}, 404, "there is no video 'video_none'"),
    ("GET", "/v1/videos/..", {}, 404, ""),
    ("GET", "/v1/videos/%2e%2e%2f%2e%2e%2fetc%2fpasswd/content", {}, 404, ""),
    ("GET", "/v1/videos/video_1/content", {}, 404, "there is no video"),
    ("DELETE", "/v1/videos/video_1", {}, 404, "there is no video"),
    ("POST", "/gradio_api/upload", {"files": {"files": b"x"}}, 404, "no such thing"),
    ("GET", "/gradio_api/file=/etc/passwd", {}, 404, "no such thing"),
    ("GET", "/gradio_api/proxy=http://other.org/", {}, 404, "no such thing"),
])
def test_hostile_requests(server, method, path, options, status, words):
    answer = httpx.request(method, server + path, timeout=30, **options)
    assert answer.status_code == status, answer.text
    assert words in answer.text
    assert len(answer.text) < 1000
    assert "Traceback" not in answer.text
    assert "\n" not in answer.text
    assert httpx.get(f"{server}/v1/models").status_code == 200


@pytest.mark.parametrize("data", [[], ["a"], ["a", "", "x", {"a": 1}, "NaN", "../..", 5, "../"],
                                  ["a", "", math.inf, 5, 3, "128x128", 5, ""]], ids=str)
@pytest.mark.parametrize("event", [0, 2])
def test_what_the_page_does_not_send(server, data, event):
    """Gradio's ways past its queue answer no server error, and no line of its code."""
    body = json.dumps({"data": data, "fn_index": event, "session_hash": "a"})
    for path in ("run/predict", "run/submit", "call/submit", "queue/join"):
        answer = httpx.post(f"{server}/gradio_api/{path}", content=body, timeout=30,
                            headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, answer.text
        assert "Traceback" not in answer.text
        assert "\n" not in answer.text
    assert httpx.get(f"{server}/v1/models").status_code == 200


def test_a_body_longer_than_it_says(server):
    def parts():
        for _ in range(200):
            yield b"a" * 1000

    assert httpx.post(f"{server}/v1/videos", content=parts()).status_code == 413
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n")
        assert raw.recv(100).split()[1] in (b"400", b"413")


def test_fifty_clients_and_a_queue_of_eight(server):
    def ask(i):
        answer = httpx.post(f"{server}/v1/videos", json={"prompt": f"client {i}", "steps": 1}, timeout=60)
        return answer.status_code, answer.json(), answer.headers.get("Retry-After")

    process, taken = psutil.Process(), []
    for round in range(3):
        with ThreadPoolExecutor(50) as clients:
            answers = list(clients.map(ask, range(50)))
        assert {status for status, _, _ in answers} <= {200, 429}
        assert all(int(wait) >= 1 for status, _, wait in answers if status == 429)
        assert all("the queue is full" in told["error"]["message"] for status, told, _ in answers if status == 429)
        taken += [told["id"] for status, told, _ in answers if status == 200]
        if round == 0:
            before = process.memory_info().rss
    assert taken
    deadline = time.monotonic() + 60
    while any(httpx.get(f"{server}/v1/videos/{id}").json()["status"] != "completed" for id in taken):
        assert time.monotonic() < deadline, "a job was lost"
    assert process.memory_info().rss < 1.1 * before


def test_a_full_queue_says_how_long(configure, tmp_path):
    with served(configure(port=0, queue=1), tmp_path / "jobs") as (address, desk):
        first = httpx.post(f"{address}/v1/videos", json={"prompt": "a"}).json()
        answer = httpx.post(f"{address}/v1/videos", json={"prompt": "a"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
        assert httpx.delete(f"{address}/v1/videos/{first['id']}").json()["deleted"]
        assert httpx.post(f"{address}/v1/videos", json={"prompt": "a"}).status_code == 200
        assert len(desk.views()) == 1


def test_a_full_disk_is_said(configure, full_disk, tmp_path):
    with served(configure(port=0), tmp_path / "jobs") as (address, _):
        full_disk(True)
        answer = httpx.post(f"{address}/v1/videos", json={"prompt": "a"})
        assert answer.status_code == 507
        assert "No space left on device" in answer.text
        assert str(tmp_path) not in answer.text
        full_disk(False)
        assert httpx.post(f"{address}/v1/videos", json={"prompt": "a"}).status_code == 200


def test_an_open_address_asks_for_its_token(configure, tmp_path):
    token = "a-token-of-this-test"
    with served(configure(port=0, address="0.0.0.0", token=token), tmp_path / "jobs") as (address, _):
        address = address.replace("0.0.0.0", "127.0.0.1")
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": token}, {"Cookie": "ospnext_token=no"}):
            for path in ("/v1/videos", "/", "/config", "/gradio_api/info"):
                answer = httpx.get(address + path, headers=headers)
                assert answer.status_code == 401
                assert json.loads(answer.text)["error"]["message"].startswith("give the server's token")
        assert httpx.get(f"{address}/v1/videos", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        with httpx.Client(base_url=address) as browser:
            answer = browser.get("/", params={"token": token})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            assert browser.get("/").status_code == 200


def test_the_page_names_no_other_host(server):
    answer = httpx.get(server)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert httpx.get(f"{server}/config").json().get("analytics_enabled") in (False, None)
