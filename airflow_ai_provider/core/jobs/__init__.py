"""What an operator runs: one runner of batches, and the jobs that are plugged into it."""
