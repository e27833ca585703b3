"""`python -m curate`."""

import sys

if __name__ == "__main__":
    # Python puts the working folder first. There it is searched last: a random.py must not replace the library's.
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    from .cli import main

    main()
