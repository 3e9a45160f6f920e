"""From what a caller logs to the bytes of an event."""
