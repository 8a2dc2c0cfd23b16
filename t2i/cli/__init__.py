"""The `t2i` command."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `argv` as in sys.argv[1:]."""
    from t2i.cli import app

    return app.main(argv)
