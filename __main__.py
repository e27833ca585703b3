"""`python -m curate`, and the command `curate`."""

import sys


def main() -> None:
    """Entry point of the process. Ctrl-C during the imports is no traceback either."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        print("curate: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    # Python puts the working folder first. There it is searched last: a random.py must not replace the library's.
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    main()
