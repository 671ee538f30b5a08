"""`python -m benchmarks.perf`."""

import sys

from benchmarks.perf.command import main

sys.exit(main(sys.argv[1:]))
