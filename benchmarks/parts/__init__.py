"""What gpu_day.py is made of, the plain loop of training.py, and timings of single stages."""
