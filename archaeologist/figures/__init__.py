"""Figures built in Python, so that page, report and notebook show the same. Pure: summaries in, plotly figures out."""
