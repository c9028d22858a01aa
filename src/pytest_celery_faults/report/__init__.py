"""``--celery-faults-report``: a page about the run."""
