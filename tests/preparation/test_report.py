"""What the report says beside counts."""

from types import SimpleNamespace

from ospnext_ms.preparation.report import make_report, summary

CONFIG = SimpleNamespace(manifest="m", cache=SimpleNamespace(contents="videos"),
                         clips=SimpleNamespace(buckets=[(64, 96, 9)], fps=8.0))


def test_interlaced_and_hdr_videos_are_told():
    records = [{"line": line, "bucket": 0, "motion": 1.0} | notes
               for line, notes in ((1, {"hdr": True}), (2, {"interlaced": True}), (2, {"interlaced": True}), (3, {}))]
    report = make_report(CONFIG, 3, records, [], {"clips": 1.0})
    assert (report["hdr"], report["interlaced"]) == (1, 1)
    text = summary(report)
    assert "1 videos are interlaced" in text
    assert "1 videos are HDR" in text
    assert "filters.allow_hdr: false" in text
    assert "HDR" not in summary(make_report(CONFIG, 3, records[3:], [], {"clips": 1.0}))
