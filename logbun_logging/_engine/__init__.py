"""The pipeline: from the call that logs to the rows that the database has."""
