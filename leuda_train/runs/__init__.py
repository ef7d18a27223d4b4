"""cohort + config -> a run folder; many runs -> one table. May import everything but cli."""
