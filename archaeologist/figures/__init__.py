"""Figures built in Python, so that page, report and notebook show the same. Pure: summaries in, plotly figures out."""

# plotly takes NumPy as it lies among the loaded modules, also half loaded by another thread. This import waits for it.
import numpy as _numpy  # noqa: F401, ICN001 -- as above
