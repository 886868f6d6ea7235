"""Where does the time of our MACE go, and how far is each part from what this machine can do?

    python -m benchmarks.profile --system si64 --cores 1 --output results.jsonl

The work is in parts.py: this name is also that of a module of the standard library, which scripts
started in this folder must still find.
"""

import sys

if __name__ == "profile":
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from sysconfig import get_path

    spec = PathFinder.find_spec("profile", [get_path("stdlib")])
    sys.modules["profile"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["profile"])
elif __name__ == "__main__":
    from benchmarks.parts import main

    main()
