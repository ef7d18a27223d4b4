"""What gpu_day.py is made of, and the plain loop that training.py compares with."""
