"""Our own convolutions for GPUs, by Triton's interpreter, which has to be chosen before anything loads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("convolution_driver.py")


def test_convolutions_are_those_of_double_precision_and_neighbours_change_no_bit():
    pytest.importorskip("triton", reason="comes with PyTorch for Linux alone")
    told = subprocess.run(
        [sys.executable, DRIVER, "cpu"], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "relative error at most" in told.stdout
