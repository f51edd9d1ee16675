"""The `vilem` command: one verb, one thin function."""
