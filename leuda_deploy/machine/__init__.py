"""this computer: its files, memory, GPU, processes, clock and progress bar. May import errors."""
