"""`python -m benchmarks.gpu recipe.yaml`: says first which packages are missing, then loads what needs them."""

from __future__ import annotations

import sys

from benchmarks.gpu.packages import missing, outdated


def main() -> int:
    lacking = missing(as_made="--as-made" in sys.argv)
    if lacking:
        print(lacking, file=sys.stderr)
        return 2
    old = outdated()
    if old:
        print(old, file=sys.stderr)
    from benchmarks.gpu import run

    return run.main()


if __name__ == "__main__":
    raise SystemExit(main())
