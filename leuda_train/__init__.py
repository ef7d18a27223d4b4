"""Training half: LE-UDA in PyTorch. Importing the package alone does not import torch."""
