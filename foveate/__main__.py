"""`python -m foveate`: the command line."""

import sys

from foveate.cli import main

if __name__ == "__main__":
    sys.exit(main())
