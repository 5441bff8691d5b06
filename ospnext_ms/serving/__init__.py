"""`serve`: jobs on disk, one worker, an HTTP API and a web page in front of it."""
