"""Contact sheets of clips."""

from ospnext_ms.data.pictures import contact_sheet, write_png

COLUMNS = 5


def write_sheet(path, clips, captions):
    """Writes clips, uint8 [N, F, H, W, 3], as rows of five frames under their captions."""
    write_png(path, contact_sheet(list(clips), captions, COLUMNS))
