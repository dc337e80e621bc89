"""Learn from a teacher: the losses, and which layer learns from which."""
