"""`python -m jaxmlip` is `jaxmlip`, also where the folder of scripts is not on the path."""

import sys

from jaxmlip.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
