"""`python -m tuneloop_localcluster`."""

import sys

from tuneloop_localcluster.cli import main

sys.exit(main())
