"""model -> lower precision, engines, servers, each proven. May import proof and what stands
below, but not inference.
"""
