"""grids of voxels: which part of a scan is looked at, how it is turned and resampled.

May import `volume` of the scans, and nothing else of the package.
"""
