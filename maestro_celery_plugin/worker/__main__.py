"""``python -m maestro_celery_plugin.worker`` runs the supervisor of a worker."""

from maestro_celery_plugin.worker.supervisor import main

if __name__ == "__main__":
    main()
