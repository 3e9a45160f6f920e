"""The process that we live in: its threads, forks, wake-ups and counters."""
