"""``python -m i2ilib``."""

import sys

from .cli import main

sys.exit(main())
