"""The time of day, off by as many seconds as the file CLOCK says, for all that asks `time`; monotonic clocks stay.

Every Python process whose PYTHONPATH has this folder imports it first (benchmarks/breaking.py).
"""

import os
import time

if "CLOCK" in os.environ:
    right, file = time.time, os.open(os.environ["CLOCK"], os.O_RDONLY)

    def off() -> float:
        """In seconds."""
        return float(os.pread(file, 32, 0) or 0)

    time.time = lambda: right() + off()
    time.time_ns = lambda: round(time.time() * 1e9)
