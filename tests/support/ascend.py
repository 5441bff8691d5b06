"""What tests of the Ascend dry run share."""

import platform
import shutil
import sys

import pytest

NEEDS_DRY_RUN = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or not all(map(shutil.which, ("gcc", "nm", "c++filt"))),
    reason="the dry run needs MindSpore's wheel for Linux on x86-64, gcc and binutils")
