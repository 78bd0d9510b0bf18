"""fxprune, a compiler for pruning: masks that train, conversion that is exact and checked, speed that is measured.

The public names stand in `__init__.pyi`. Each is imported when it is first used, so that the command line's help need
not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
