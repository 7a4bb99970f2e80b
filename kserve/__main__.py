"""``python -m kserve`` is ``kserve``."""

from kserve.cli import main

if __name__ == "__main__":
    main()
