"""the paper: the step on one page, its losses, averages and schedules. May import data and
networks.
"""
