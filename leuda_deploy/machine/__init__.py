"""this computer: files, memory, GPU, progress bars and clocks. May import errors alone."""
