"""The page about a run: everything in it, nothing from elsewhere, and it opens in a browser without a network."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from ospnext_ms.data.pictures import read_png, write_png
from ospnext_ms.data.video import write_mp4
from ospnext_ms.reporting import report
from ospnext_ms.reporting.report import write_report

HOSTILE = '"><script src="http://elsewhere.example/x.js"></script><img src=//elsewhere.example>'
CONFIGURATION = {"run_mode": "finetune", "seed": 3, "model": {"dit": {"dim": 16}}, "output_dir": HOSTILE}
CHROMIUM = shutil.which("chromium")


def picture(color):
    return np.full((64, 96, 3), color, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Folder of a run with everything that a page shows; the film strip is green, the curve magenta."""
    folder = tmp_path / "run & co"
    records = [{"step": 0, "eval_loss": 0.5, "eval_loss_ema": 0.6},
               *({"step": i, "loss": 1 / i, "learning_rate": 1e-4, "step_seconds": 2.0} for i in range(1, 4)),
               {"step": 3, "eval_loss": 0.25, "eval_loss_ema": 0.3, "words": HOSTILE}]
    write_png(folder / "loss_curve.png", picture((255, 0, 255)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 4, "lo')
    step = folder / "validation" / "step_00000003"
    write_png(folder / "validation" / "film_strip.png", picture((0, 255, 0)))
    write_png(step / "contact_sheet.png", picture((0, 0, 255)))
    write_mp4(step / "grid.mp4", np.full((5, 32, 32, 3), 90, np.uint8), 8, 18)
    (step / "validation.json").write_text("{}")
    for number in ("000000", "000002", "000004"):
        write_png(folder / "evaluation" / number / "contact_sheet.png", picture((9, 9, int(number))))
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_everything_is_in_the_page_and_nothing_from_elsewhere(folder):
    path = write_report(folder, CONFIGURATION, {"device": "CPU"}, folder / "loss_curve.png")
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    expected = "html head meta title style body h1 h2 table tr th td figure figcaption img video"
    assert {tag for tag, _ in page.tags} == set(expected.split())
    references = [value for _, attributes in page.tags for name, value in attributes.items()
                  if name in ("src", "href", "srcset", "poster", "data", "action", "background", "style")]
    assert len(references) == 6
    assert all(value.startswith(("data:image/png;base64,", "data:video/mp4;base64,")) for value in references)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    words = "\n".join(page.words)
    for expected in ("run & co: finetune", HOSTILE, "model.dit.dim", "eval_loss_ema", "0.25", "mindspore", "CPU",
                     "validation/film_strip.png", "evaluation/000000/contact_sheet.png",
                     "evaluation/000004/contact_sheet.png", "seconds of all steps together"):
        assert expected in words, expected
    assert "evaluation/000002" not in words


def test_an_empty_run_has_a_page_and_a_large_picture_is_named_only(folder, tmp_path, monkeypatch):
    assert "Configuration" in write_report(tmp_path / "empty", CONFIGURATION, {}).read_text()
    monkeypatch.setattr(report, "MAX_EMBEDDED_BYTES", 100)
    text = write_report(folder, CONFIGURATION, {}, folder / "loss_curve.png").read_text()
    assert "base64" not in text
    assert "film_strip.png has 0 MB and is not shown here" in text


def test_long_runs_show_some_of_their_evaluations_with_the_first_and_the_last(folder):
    lines = [json.dumps({"step": step, **{f"eval/{i}": step for i in range(15)}}) for step in range(500)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    text = write_report(folder, CONFIGURATION, {}).read_text()
    assert "metrics.jsonl has 3 further figures of each" in text
    rows = re.findall(r"<tr><td>(\d+)</td><td>\1</td>", text)
    assert (rows[0], rows[-1], len(rows)) == ("0", "499", 60)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_it_opens_in_chromium_without_a_network(folder, tmp_path):
    path = write_report(folder, CONFIGURATION, {"device": "CPU"}, folder / "loss_curve.png")
    common = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
              "--disable-background-networking", "--disable-component-update", "--disable-sync",
              "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    seen = subprocess.run([*common, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1000,1600", path.as_uri()],
                          check=True, capture_output=True, text=True, timeout=300)
    pixels = read_png(tmp_path / "page.png").reshape(-1, 3)
    # Both pictures are drawn where they stand, at their size.
    for color in ((255, 0, 255), (0, 255, 0)):
        assert (pixels == color).all(1).sum() > 0.9 * 64 * 96, seen.stderr
    shown = subprocess.run([*common, "--dump-dom", path.as_uri()], check=True, capture_output=True, text=True,
                           timeout=300).stdout
    assert "<title>run &amp; co: finetune</title>" in shown
    assert "<script" not in shown
