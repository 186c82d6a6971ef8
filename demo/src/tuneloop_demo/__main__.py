"""``python -m tuneloop_demo [--context NAME --registry HOST/PREFIX]``: the demo, for people at a terminal."""

import argparse
import sys

from tuneloop_demo.driver import demo
from tuneloop_demo.errors import DemoError


def main() -> int:
    """Run it; 1 with a sentence on stderr when it cannot go on."""
    parser = argparse.ArgumentParser(prog="tuneloop-demo", description=__doc__)
    parser.add_argument("--context", default="", help="a kubectl context to use instead of the local cluster")
    parser.add_argument("--registry", default="", metavar="HOST/PREFIX", help="where that cluster pulls images from")
    options = parser.parse_args()
    try:
        demo(options.context, options.registry)
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; run it again to go on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
