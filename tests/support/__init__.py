"""What several tests build on: tiny checkpoints of every model family."""
