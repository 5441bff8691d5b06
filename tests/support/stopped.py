"""A `generate` that gets a signal when a video is complete: python -m tests.support.stopped SIGNAL NUMBER COMMAND ...

The process gets the signal of that number when the video NUMBER, from 1, that it makes is complete. COMMAND and what
follows go to ospnext_ms.
"""

import os
import sys
import time

from ospnext_ms import __main__ as command_line
from ospnext_ms.generation.folder import Folder


def main(number, count, *arguments):
    """Runs the command."""
    finish, done = Folder.finish, []

    def finished(*given):
        path = finish(*given)
        done.append(path)
        if len(done) == int(count):
            os.kill(os.getpid(), int(number))
            # The thread that waits for signals notes it meanwhile.
            time.sleep(1.0)
        return path

    Folder.finish = finished
    return command_line.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
