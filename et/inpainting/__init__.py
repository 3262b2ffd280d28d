"""Masked-image completion (paper section 3, appendix B)."""

# Importing this package makes timm know "et_base_patch16_224".
from et.inpainting import timm_models as timm_models
