"""run -> exported model, proven against PyTorch. May import data and networks."""
