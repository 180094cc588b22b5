"""``python -m SAM2AssistLib`` is ``sam2assist``."""

from SAM2AssistLib.cli.app import main

if __name__ == "__main__":
    main()
