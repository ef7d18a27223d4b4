"""a TensorRT engine beside a model file -> scores of windows; or the reason why it is refused.

engine_fit.py  does an engine fit this machine and this model, and may it be loaded
engine.py      one that does, and runs
buffers.py     windows on their way to the GPU and back, while it computes others
cuda.py        the few calls of CUDA that this takes
"""
