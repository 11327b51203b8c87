"""``python -m constellation.cli`` is the command ``constellation``."""

import sys

from constellation.cli import main

sys.exit(main())
