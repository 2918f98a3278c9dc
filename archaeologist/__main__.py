"""``python -m archaeologist``."""

from archaeologist.cli.app import main

if __name__ == "__main__":
    main()
