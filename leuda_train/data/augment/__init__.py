"""slices -> other slices of the same anatomy: affine, style, Fourier."""
