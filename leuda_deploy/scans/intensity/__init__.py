"""all voxels of a scan -> their distribution, and from it clip limits and normalisation."""

from leuda_deploy.scans.intensity.fit import Float32, Intensity, fit_intensity

__all__ = ["Float32", "Intensity", "fit_intensity"]
