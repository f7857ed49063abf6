"""stoker keeps GPUs fed: streaming, distributed training and serving of image models on Ray."""

__all__ = ["__version__"]

__version__ = "0.1.0"
