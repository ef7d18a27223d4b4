"""one exported model: its card, its file, its folder. May import scans and what stands below."""
