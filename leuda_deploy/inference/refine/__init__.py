"""what a network found, made more likely: probabilities before labels are taken, labels after.

Nothing here knows of engines or windows: it is given slices, in rising order.
"""
