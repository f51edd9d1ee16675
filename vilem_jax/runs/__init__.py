"""A run's folder: settings, checkpoints, metrics, and the model that it trained."""
