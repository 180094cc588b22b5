"""``python -m SAM2AssistLib`` is ``sam2assist``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C is heeded from the first import on."""
    try:
        from SAM2AssistLib.cli import app
    except KeyboardInterrupt:
        sys.stderr.write("Cancelled; nothing had begun.\n")
        sys.exit(130)
    app.main()


if __name__ == "__main__":
    main()
