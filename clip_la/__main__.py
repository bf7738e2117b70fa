"""`python -m clip_la` is `clip-la`."""

import sys

from clip_la.cli import main

if __name__ == "__main__":
    sys.exit(main())
