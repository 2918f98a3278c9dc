"""``python -m tests.faults.daemon``: the daemon as it is, but for the children that it starts."""

import asyncio
import sys
from pathlib import Path
from typing import Final

from archaeologist import logs
from archaeologist.daemon import service
from archaeologist.settings import load

CHILD: Final = (sys.executable, "-S", str(Path(__file__).with_name("child.py")))


def main() -> None:
    """Serves until it is told to stop, or killed."""
    settings = load()
    logs.configure(settings.log)
    asyncio.run(service.run(settings, command=CHILD))


if __name__ == "__main__":
    main()
