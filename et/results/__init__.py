"""The paper's numbers and the measured ones: tables, figures, the report page. A run does not need it."""
