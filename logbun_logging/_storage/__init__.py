"""The files of a namespace: the write-ahead log and the dead-letter queue."""
