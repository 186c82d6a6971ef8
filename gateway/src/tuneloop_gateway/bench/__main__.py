"""``python -m tuneloop_gateway.bench``."""

import sys

from tuneloop_gateway.bench.cli import main

sys.exit(main())
