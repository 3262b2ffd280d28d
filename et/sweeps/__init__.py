"""Many runs: the cells of a table, their states, and Slurm."""
