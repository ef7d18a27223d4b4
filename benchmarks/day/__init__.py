"""The parts of gpu_day.py: each runs in a process of its own and writes what it found."""
