"""What a run's videos look like at a glance: a contact sheet and a grid, drawn from the files as they lie."""

from ospnext_ms.data.pictures import contact_sheet, evenly_spaced, thumbnail, write_png
from ospnext_ms.data.video import iterate_video, write_grid

SHEET_COLUMNS = 8
# More rows or cells than these nobody can look at; of longer runs the first ones are shown.
MAX_SHEET_ROWS = 64
MAX_GRID_CELLS = 16


def write_overviews(folder, jobs, video):
    """Writes the contact sheet and, of several jobs, the grid into a Folder in which all of them are complete.

    Args:
        video: VideoSection. Returns the paths.
    """
    shown = jobs[:MAX_SHEET_ROWS]
    rows = [_thumbnails(folder.video(job), video.frames) for job in shown]
    captions = [f"{i}: {job.prompt}" for i, job in enumerate(shown)]
    write_png(folder.sheet, contact_sheet(rows, captions, SHEET_COLUMNS))
    if len(jobs) == 1:
        folder.grid.unlink(missing_ok=True)
        return [folder.sheet]
    write_grid(folder.grid, [folder.video(job) for job in jobs[:MAX_GRID_CELLS]], video.fps, video.crf)
    return [folder.sheet, folder.grid]


def _thumbnails(path, frames):
    wanted = set(evenly_spaced(frames, SHEET_COLUMNS))
    return [thumbnail(frame) for i, frame in enumerate(iterate_video(path)) if i in wanted]
