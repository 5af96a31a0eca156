"""From the standard graph to a target's own dialect, one file a target."""
