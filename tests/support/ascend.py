"""What tests of the Ascend dry run share."""

import platform
import shutil
import sys
from importlib.metadata import version

import pytest

from ospnext_ms.planning.ascend_checks import SUPPORTED

NEEDS_DRY_RUN = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or not all(map(shutil.which, ("gcc", "nm", "c++filt")))
    or not version("mindspore").startswith(f"{SUPPORTED['mindspore']}."),
    reason=f"the dry run needs the wheel of MindSpore {SUPPORTED['mindspore']} for Linux on x86-64, gcc and binutils")
