"""Run records, the paper's numbers, tables and figures: reads files only."""
