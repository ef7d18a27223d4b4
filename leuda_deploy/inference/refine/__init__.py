"""what a network found, made more likely: probabilities before labels are taken, labels after.

May import what inference may. Nothing here knows of slabs, engines or windows.
"""
