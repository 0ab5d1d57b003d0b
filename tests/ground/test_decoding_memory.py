"""How much memory the largest images take that are read at all, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "CMYK", "turned"])
def test_the_largest_images_take_a_few_times_the_room_of_their_pixels(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    exif = Image.Exif()
    if mode == "turned":
        exif[0x0112] = 6
    Image.new("RGBA" if mode == "turned" else mode, (8192, 8192)).save(path, exif=exif)
    program = (
        "import re, sys\nfrom pathlib import Path\n"
        "from ground.decoding import decode, reads_anew\n"
        "path = Path(sys.argv[1])\nassert decode(path).size == (8192, 8192)\nreads_anew(path.read_bytes())\n"
        # Not getrusage: its peak is also that of the process which this one was forked from.
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    # Pillow keeps RGB in four bytes a pixel, 268 MB: what was decoded, what is shown, and once more turned.
    assert int(done.stdout) * 1024 < 4 * 4 * 8192**2
