"""Text embeddings between the text encoder, which goes, and the transformer, which comes after it: on disk."""

import tempfile

import numpy as np


class EmbeddingFile:
    """{text: fp32 [length, C]}, in a nameless file of the system's temporary folder (TMPDIR); gone with the object.

    5,000 texts of the released text encoder are 8 GB.
    """

    def __init__(self):
        # Kept open as long as the object is there.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._places = {}

    def __contains__(self, text):
        return text in self._places

    def __setitem__(self, text, rows_LC):
        self._file.seek(0, 2)
        self._places[text] = self._file.tell(), rows_LC.shape
        self._file.write(np.ascontiguousarray(rows_LC, np.float32).tobytes())

    def __getitem__(self, text):
        start, shape = self._places[text]
        self._file.seek(start)
        return np.frombuffer(self._file.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
