"""Training learned compressors: losses, data, what the full model says, and the Trainer."""
