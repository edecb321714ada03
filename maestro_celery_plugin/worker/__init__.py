"""A worker: a supervisor and the Celery worker that runs samples, on this machine or in an allocation."""
