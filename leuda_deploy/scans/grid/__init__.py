"""grids of voxels: which part of a scan is looked at, how it is resampled, and drawn to edges.

May import `volume` of the scans, and nothing else of the package.
"""
