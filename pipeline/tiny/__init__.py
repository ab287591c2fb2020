"""The embedded model: a small trained Wan-VACE checkpoint and the scripts that made it."""
