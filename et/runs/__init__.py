"""What a run leaves: its id, record, folder and weights."""
