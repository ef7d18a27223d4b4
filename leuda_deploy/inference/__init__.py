"""scan -> labels. May import proof and what stands below, but not export."""
