"""`python -m pagedattn`: the command, where no script of that name is on PATH."""

import sys

from pagedattn.cli import main

if __name__ == "__main__":
    sys.exit(main())
