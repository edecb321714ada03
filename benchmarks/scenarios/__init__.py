"""The scenarios: null samples, submission, latency between steps, status, and utilisation."""
