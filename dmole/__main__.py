"""``python -m dmole``."""

import sys

from dmole.cli.main import main

sys.exit(main())
