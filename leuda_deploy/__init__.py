"""Deployment half: what stands on the edge device. Never imports torch."""
