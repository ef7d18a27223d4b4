"""scans + cohort file -> slices and batches. May import config and loop."""
