"""A run as one HTML page that needs nothing else: no script, no font, no file beside it, no network."""

import base64
import json
import platform
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.storage.files import atomic_path

REPORT = "report.html"
PACKAGES = ("ospnext-ms", "mindspore", "mindformers", "numpy")
# Larger files are named, not shown: a page of hundreds of megabytes opens nowhere.
MAX_EMBEDDED_BYTES = 16 * 10**6
MAX_ROWS, _MAX_COLUMNS = 60, 12
# The browser itself refuses whatever the page does not hold.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
h1, h2 { line-height: 1.2 } h2 { border-bottom: 1px solid #ccc; margin-top: 2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } img, video { max-width: 100% }
th, td { border: 1px solid #ddd; padding: .15em .6em; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } figure { margin: 1em 0 } figcaption { color: #666 }"""


def write_report(folder, configuration, about, curve=None):
    """Writes FOLDER/report.html and returns its path.

    Args:
        folder: of the run. configuration: of the run, JSON values. about: {name: value} of what ran it.
        curve: path of the curves' picture, None without.
    """
    folder = Path(folder)
    records = read_metrics(folder)
    parts = [_section("Figures", _latest(records)),
             _section("Curves", _shown(curve) if curve else ""),
             _section("Samples", _samples(folder)),
             _section("Evaluation", _evaluations(records)),
             _section("Environment", _table(("", ""), _environment(about).items())),
             _section("Configuration", _table(("key", "value"), _leaves("", configuration)))]
    title = f"{escape(folder.name)}: {escape(str(configuration.get('run_mode', 'run')))}"
    with atomic_path(folder / REPORT) as path:
        path.write_text(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<title>{title}</title>\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{''.join(parts)}</body>\n</html>\n",
            encoding="utf-8")
    return folder / REPORT


def _section(title, content):
    return f"<h2>{title}</h2>\n{content}\n" if content else ""


def _table(head, rows):
    titles = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(_words(value))}</td>" for value in row) + "</tr>\n" for row in rows)
    return f"<table>\n<tr>{titles}</tr>\n{lines}</table>"


def _words(value):
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _latest(records):
    """The last step's figures, and how long the steps took together."""
    last = next((record for record in reversed(records) if "loss" in record or "policy_loss" in record), None)
    if last is None:
        return ""
    seconds = [value for record in records for name in ("step_seconds", "iteration_seconds")
               if isinstance(value := record.get(name), int | float)]
    return _table(("figure", "value"), [*last.items(), ("seconds of all steps together", float(sum(seconds)))])


def _evaluations(records):
    found = [record for record in records if any(name.startswith("eval") for name in record)]
    if not found:
        return ""
    names = list(dict.fromkeys(name for record in found for name in record if name.startswith("eval")))
    shown, left = names[:_MAX_COLUMNS], len(names) - _MAX_COLUMNS
    rows = [[record["step"], *(record.get(name, "") for name in shown)] for record in _thinned(found)]
    note = f"<p>metrics.jsonl has {left} further figures of each.</p>" if left > 0 else ""
    return _table(("step", *shown), rows) + note


def _thinned(values):
    """At most MAX_ROWS of them, evenly spaced, with the first and the last."""
    if len(values) <= MAX_ROWS:
        return values
    return [values[round(i * (len(values) - 1) / (MAX_ROWS - 1))] for i in range(MAX_ROWS)]


def _samples(folder):
    """The film strip, the last validation, the first and the last evaluation."""
    validation, evaluation = folder / "validation", folder / "evaluation"
    paths = [validation / "film_strip.png"]
    steps = sorted(path.parent for path in validation.glob("step_*/validation.json"))
    for step in steps[-1:]:
        videos = [path for path in (step / "grid.mp4", step / "video_0000.mp4") if path.is_file()]
        paths += [step / "contact_sheet.png", *videos[:1]]
    sheets = sorted(evaluation.glob("*/contact_sheet.png"))
    paths += [*sheets[:1], *sheets[1:][-1:]]
    return "".join(_shown(path, path.relative_to(folder)) for path in paths if path.is_file())


def _shown(path, caption=""):
    """A picture or video within the page."""
    path, words = Path(path), escape(str(caption))
    content = path.read_bytes()
    if len(content) > MAX_EMBEDDED_BYTES:
        return f"<p>{escape(path.name)} has {len(content) / 1e6:.0f} MB and is not shown here.</p>\n"
    data = base64.b64encode(content).decode()
    if path.suffix == ".mp4":
        element = f'<video controls loop muted src="data:video/mp4;base64,{data}"></video>'
    else:
        element = f'<img alt="{words}" src="data:image/png;base64,{data}">'
    return f"<figure>{element}<figcaption>{words}</figcaption></figure>\n"


def _environment(about):
    return {**about, "written": datetime.now(UTC).isoformat(timespec="seconds"), "system": platform.platform(),
            "python": platform.python_version(), **{name: _version_of(name) for name in PACKAGES}}


def _version_of(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


def _leaves(key, value):
    """(dotted key, value) of all that is no section."""
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from _leaves(f"{key}.{name}" if key else name, entry)
    else:
        yield key, value
