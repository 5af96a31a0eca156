"""`python -m benchmarks.gpu recipe.yaml`: says first which packages are missing, then loads what needs them."""

from __future__ import annotations

import sys

OLDEST = (3, 11)
"""Python that RecPress runs on, as pyproject.toml says, which an older one cannot read."""


def main() -> int:
    if sys.version_info < OLDEST:
        here, oldest = (".".join(map(str, each[:2])) for each in (sys.version_info, OLDEST))
        print(
            f"{sys.executable} is Python {here}; {oldest} or later is needed: make gpu GPU_PYTHON=...", file=sys.stderr
        )
        return 2
    from benchmarks.gpu.packages import missing, outdated

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
