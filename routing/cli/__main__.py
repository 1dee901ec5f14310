"""`python -m routing.cli` is the command line too."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
