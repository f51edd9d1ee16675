"""The only place that updates anything."""
