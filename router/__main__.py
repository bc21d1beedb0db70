"""`python -m router` serves, like `draftgate serve`."""

import sys

from router.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
