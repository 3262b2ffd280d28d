"""Node anomaly detection on graphs (paper section 4, appendices C, E and F.1; tables 1, 5, 6, 12 and 13)."""
