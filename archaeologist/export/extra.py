"""The tools that write exports, which are installed only where somebody wants them."""

import importlib
from typing import Any

from archaeologist.errors import ExtraMissing


def tool(name: str, *, wanted_by: str) -> Any:
    """A module of the extra ``export``.

    Raises:
        ExtraMissing: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        msg = f"{wanted_by} needs {package} ({error}); run `pip install 'model-archaeologist[export]'`"
        raise ExtraMissing(msg) from error
