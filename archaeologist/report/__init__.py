"""The report: one campaign in one HTML file that needs nothing else."""
