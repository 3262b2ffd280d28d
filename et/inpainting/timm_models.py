"""Former name of :mod:`et.integrations.timm`. Deprecated."""

import sys
import warnings
from importlib import import_module

warnings.warn("et.inpainting.timm_models is now et.integrations.timm", DeprecationWarning, stacklevel=2)
sys.modules[__name__] = import_module("et.integrations.timm")
