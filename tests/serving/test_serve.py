"""`python -m ospnext_ms serve` as its users have it: the tiny model, Chromium, kills."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from ospnext_ms.data.decoding import opened
from tests.support.paths import ROOT

pytest.importorskip("gradio", reason="serve's packages are not installed (extra app)")
httpx = pytest.importorskip("httpx")
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
# The first video compiles the network; a busy machine takes minutes over it.
SECONDS = 900


@contextmanager
def server(folder, *options):
    """Context of (address, process) of a real server in `folder`."""
    command = [sys.executable, "-m", "ospnext_ms", "serve", "--config", "yaml_configs/generate/tiny.yaml",
               "--output", str(folder), "--port", "0", *options]
    job = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})
    lines = []
    try:
        for line in job.stdout:
            lines.append(line)
            if found := re.match(r"(http://\S+)", line):
                break
        else:
            pytest.fail("".join(lines))
        threading.Thread(target=lambda: lines.extend(job.stdout), daemon=True).start()
        yield found[1], job
    finally:
        job.kill()
        job.wait()


def until(condition, what):
    """Waits for a condition and returns what it gave."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return value


def ask(address, **values):
    answer = httpx.post(f"{address}/v1/videos", json={"prompt": "a bright 3 drifting up"} | values, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def told(address, id):
    return httpx.get(f"{address}/v1/videos/{id}", timeout=60).json()


def test_killed_and_started_again(tmp_path):
    with server(tmp_path) as (address, job):
        done = ask(address, steps=2)
        until(lambda: told(address, done)["status"] == "completed", "no video")
        ids = [ask(address, steps=60), ask(address, steps=2, seed=1), ask(address, steps=2, seed=2)]
        until(lambda: told(address, ids[0])["progress"] > 0, "no step")
        job.send_signal(signal.SIGKILL)
        job.wait()
    with server(tmp_path) as (address, job):
        listed = httpx.get(f"{address}/v1/videos", params={"order": "asc"}, timeout=60).json()["data"]
        assert [video["id"] for video in listed] == [done, *ids]
        assert listed[0]["status"] == "completed"
        until(lambda: told(address, ids[0])["progress"] > 0, "not begun again")
        assert httpx.delete(f"{address}/v1/videos/{ids[0]}", timeout=60).json()["deleted"]
        for id in ids[1:]:
            until(lambda id=id: told(address, id)["status"] == "completed", "a queued job was lost")
        path = tmp_path / "got.mp4"
        path.write_bytes(httpx.get(f"{address}/v1/videos/{ids[1]}/content").content)
        assert path.read_bytes()[4:8] == b"ftyp"
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0


def test_a_served_video_is_the_one_that_generate_makes(tmp_path):
    with server(tmp_path / "served") as (address, _):
        first = ask(address, steps=3, seed=5)
        ask(address, steps=4, seed=6, guidance=1)
        again = ask(address, steps=3, seed=5)
        until(lambda: told(address, again)["status"] == "completed", "no video")
        videos = [httpx.get(f"{address}/v1/videos/{id}/content").content for id in (first, again)]
    command = [sys.executable, "-m", "ospnext_ms", "generate", "--config", "yaml_configs/generate/tiny.yaml",
               "--prompt", "a bright 3 drifting up", "--seed", "5", "--steps", "3", "--output", str(tmp_path / "made"),
               "--set", "prompts.samples_per_prompt=2"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    assert videos[0] == videos[1]
    assert videos[0] == (tmp_path / "made" / "video_0000.mp4").read_bytes()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(tmp_path):
    """OSPNEXT_SCREENSHOTS=FOLDER keeps the pictures of docs/serve.md."""
    screenshots = os.environ.get("OSPNEXT_SCREENSHOTS")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with server(tmp_path, "--set", "serve.max_steps=1000") as (address, _), playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page, asked = browser.new_page(viewport={"width": 1100, "height": 800}), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.fill("#prompt textarea", "a <b>bright</b> 3 drifting up", timeout=60_000)
        # Of so many that a browser which is slow sees some of them.
        page.fill("#steps input[type=number]", "1000")
        page.click("#make")
        first = until(lambda: re.search(r"Step \d+ of 1000", page.inner_text("#current")), "no step")[0]
        until(lambda: first not in page.inner_text("#current"), f"progress did not move from {first}")
        assert re.search(r"Step [1-9]\d* of 1000", page.inner_text("#current"))
        if screenshots:
            page.screenshot(path=f"{screenshots}/serve_progress.png")
        page.click("#cancel")
        until(lambda: "Cancelled" in page.inner_text("#current"), "not cancelled")
        page.fill("#steps input[type=number]", "20")
        page.click("#make")
        until(lambda: page.query_selector("#current video"), "no video")
        page.wait_for_function("document.querySelector('#current video').readyState >= 1")
        video = page.evaluate("(v => [v.duration, v.videoWidth, v.videoHeight])"
                              "(document.querySelector('#current video'))")
        assert video == [2.125, 128, 128]
        page.wait_for_function("document.querySelector('#current video').currentTime > 0")
        assert "a <b>bright</b> 3 drifting up" in page.inner_text("#current")
        assert "seed 0, steps 20" in page.inner_text("#current")
        with page.expect_download() as download:
            page.click("#current a")
        with opened(download.value.path()):
            pass
        for seed in (1, 2):
            ask(address, steps=1000, seed=seed)
        page.fill("#seed input", "7")
        page.click("#make")
        until(lambda: re.search(r"Place \d in the queue", page.inner_text("#current")), "not queued")
        page.click("#cancel")
        until(lambda: "Cancelled" in page.inner_text("#current"), "not cancelled")
        page.fill("#seed input", "-2")
        page.click("#make")
        until(lambda: "seed is -2; it must be from -1" in page.inner_text("body"), "no error")
        page.reload()
        until(lambda: page.query_selector("#gallery video"), "no gallery")
        states = [json.loads(path.read_text()) for path in tmp_path.glob("jobs/*/job.json")]
        assert [job["state"] for job in states if job["settings"]["seed"] == 7] == ["cancelled"]
        assert {url.split("/")[2] for url in asked if url.startswith(("http", "ws"))} == {address.split("/")[2]}
        if screenshots:
            page.screenshot(path=f"{screenshots}/serve_gallery.png")
        browser.close()
