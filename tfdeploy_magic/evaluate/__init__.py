"""Files and data → Evidence: interpreter sessions, parity, task metrics, latency, and what follows from them."""
