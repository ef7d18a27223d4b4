"""images of a series -> stacks of slices -> a grid, mended where it is none."""
