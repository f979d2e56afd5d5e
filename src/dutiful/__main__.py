"""`python -m dutiful` is `dutiful`."""

import sys

from dutiful.cli import main

# Guarded: child processes for process=True handlers import this module again, as "__mp_main__".
if __name__ == "__main__":
    sys.exit(main())
