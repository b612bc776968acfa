"""``python -m dmole``."""

import sys

from dmole.cli import main

sys.exit(main())
