"""grids of voxels: which part of a scan is looked at, and how it is resampled.

May import `volume` of the scans, and nothing else of the package.
"""
