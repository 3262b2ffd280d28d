"""Graph classification and regression (paper section 5, appendix D; tables 2 and 7-11)."""
