"""a model folder of nnU-Net -> an export that does what nnU-Net does with a scan."""
