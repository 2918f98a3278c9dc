"""Figures that are asked for while another thread loads NumPy, as the first page's requests do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HALF_LOADED = """
import os, sys
sys.loading.set()
sys.drawn.wait(1)
__path__, __file__ = [os.path.dirname(os.environ["NUMPY"])], os.environ["NUMPY"]
exec(compile(open(__file__).read(), __file__, "exec"))
"""
SCRIPT = """
import sys, threading
import plotly.graph_objects

sys.loading, sys.drawn = threading.Event(), threading.Event()
assert "numpy" not in sys.modules
other = threading.Thread(target=__import__, args=("numpy",))
other.start()
sys.loading.wait()
from archaeologist.figures.themes import DARK, template
try:
    template(DARK)
finally:
    sys.drawn.set()
other.join()
"""


def test_figures_wait_until_another_thread_has_loaded_numpy(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(HALF_LOADED)
    paths = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[3])))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": paths, "NUMPY": str(np.__file__)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
