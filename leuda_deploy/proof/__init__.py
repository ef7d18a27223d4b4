"""do two engines say the same? May import engines and what stands below."""
