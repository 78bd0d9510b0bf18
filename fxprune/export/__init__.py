"""Which functions turn a model into a checked ONNX file, measure it, and report? See `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
