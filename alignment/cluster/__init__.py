"""Slurm: what a job is given, how steps become jobs and arrays that wait for each other, and how they fare."""
