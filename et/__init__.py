"""Energy Transformer (Hoover et al., NeurIPS 2023): one core, three task families, every table of the paper."""

__version__ = "0.2.0"
