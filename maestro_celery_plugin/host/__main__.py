"""The process of a session's host: ``python -m maestro_celery_plugin.host SESSION``."""

from maestro_celery_plugin.host.host import main

if __name__ == "__main__":
    main()
