"""Energy Transformer (Hoover et al., NeurIPS 2023): one core, three task families, every table of the paper."""

from omegaconf import OmegaConf

from et.graphs.published import standardize_by_default

# For conf/data/graphs.yaml, which anything that composes a configuration may read.
OmegaConf.register_new_resolver("standardize_by_default", standardize_by_default, replace=True)
