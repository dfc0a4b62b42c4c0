"""``python -m i2ilib``."""

import os
import sys

from .cli import main

code = main()
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # threads of Gloo outlive the process group once DDP has used it; one that still lets go of a tensor while Python
    # takes itself apart aborts a process whose work is done
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
