"""What is measured: null samples, submission, latency between steps, and status."""
