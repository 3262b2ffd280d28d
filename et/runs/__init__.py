"""Files and identity of a run: its id, record, folder and weights."""
