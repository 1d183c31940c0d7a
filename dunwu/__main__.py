"""`python -m dunwu`: the same as the `dunwu` command."""

from dunwu.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
