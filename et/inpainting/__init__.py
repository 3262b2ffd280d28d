"""Masked-image completion (paper section 3, appendix B)."""
