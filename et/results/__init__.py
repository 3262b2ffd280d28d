"""The paper's numbers beside the measured ones: tables, figures, the report page. Training does not import it."""
